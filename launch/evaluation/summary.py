"""What do the requests of one run come to?

Pure: the `Run` of a study, made of its results.
"""

from collections.abc import Sequence
from statistics import fmean

from launch.evaluation.arrivals import Arrivals, ClosedLoop, Poisson
from launch.evaluation.compatible import Keys, vllm_keys
from launch.evaluation.load import dispatch, saturation
from launch.evaluation.measures import measure, whole
from launch.evaluation.results import Outcome, RequestResult, Window, arriving, steady
from launch.evaluation.slo import Slo, attain, scale_curve
from launch.evaluation.study import Run, SloScale
from launch.evaluation.workload import Request


def summarise(  # noqa: PLR0913 - a run has so many sides
    run_id: str,
    system: str,
    purpose: str,
    *,
    requests: Sequence[Request],
    arrivals: Arrivals,
    results: Sequence[RequestResult],
    slo: Slo | None = None,
    warm_up_s: float = 0.0,
    cool_down_s: float = 0.0,
    stopped: bool = False,
) -> Run:
    """
    Args:
        requests: as planned; a run that was stopped has fewer results.
        warm_up_s, cool_down_s: left out of the window, unless that leaves nothing, as in a run that was stopped early.
    """
    window = _window(results, warm_up_s, cool_down_s)
    measures = measure(results, window)
    closed = isinstance(arrivals, ClosedLoop)
    prompts = [request.prompt_tokens for request in requests if request.prompt_tokens is not None]
    return Run(
        run_id=run_id,
        system=system,
        purpose=purpose,
        arrivals=arrivals,
        rate_per_s=None if closed else planned_rate(arrivals, requests),
        requests=len(results),
        seconds=whole(results).duration_s,
        stopped=stopped,
        prompt_tokens=fmean(prompts) if prompts and len(prompts) == len(requests) else None,
        output_tokens=fmean(request.output_tokens for request in requests) if requests else 0.0,
        measures=measures,
        attainments=attain(arriving(results, window), slo) if slo is not None else None,
        dispatch=None if closed else dispatch(results),
        saturation=None if closed else saturation(results),
        vllm=vllm_keys(measures, results, slo) | _load_keys(arrivals, requests, results),
    )


def planned_rate(arrivals: Arrivals, requests: Sequence[Request]) -> float | None:
    """As asked; of a trace's clock, as its arrivals have it."""
    if isinstance(arrivals, ClosedLoop):
        return None
    asked: float | None = getattr(arrivals, "rate_per_s", None)
    if asked is not None:
        return asked
    span = requests[-1].arrival_s - requests[0].arrival_s if requests else 0.0
    return (len(requests) - 1) / span if span > 0.0 else None


def slo_scale(run: Run, results: Sequence[RequestResult], slo: Slo, factors: Sequence[float]) -> SloScale:
    """Any run's requests can be judged again."""
    return SloScale(
        run_id=run.run_id,
        system=run.system,
        points=scale_curve(arriving(results, run.measures.window), slo, factors),
    )


def deviations(
    run: Run, results: Sequence[RequestResult], planned: int, warm_up_s: float = 0.0, cool_down_s: float = 0.0
) -> tuple[str, ...]:
    """Notes on what differs from the plan."""
    notes = []
    if run.stopped:
        cut = sum(result.outcome is Outcome.CUT_OFF for result in results)
        notes.append(
            f"{run.run_id}: stopped by hand after {run.requests} of {planned} requests: {cut} under way are cut off,"
            " and what is missing is in no number"
        )
    if (warm_up_s or cool_down_s) and run.measures.window == whole(results):
        notes.append(f"{run.run_id}: warm-up and cool-down would leave nothing of it and are in its numbers")
    short = sum(
        result.outcome is Outcome.COMPLETED and len(result.token_s) < (result.asked_tokens or 0) for result in results
    )
    if short:
        notes.append(f"{run.run_id}: {short} of {len(results)} answers are shorter than asked")
    return tuple(notes)


def _window(results: Sequence[RequestResult], warm_up_s: float, cool_down_s: float) -> Window:
    if not (warm_up_s or cool_down_s) or not results:
        return whole(results)
    try:
        return steady(results, warm_up_s, cool_down_s)
    except ValueError:
        return whole(results)


def _load_keys(arrivals: Arrivals, requests: Sequence[Request], results: Sequence[RequestResult]) -> Keys:
    """What `vllm bench serve` says of the load; vLLM writes "inf" as the rate of a closed loop, and null is here."""
    completed = [result for result in results if result.outcome is Outcome.COMPLETED]
    counted = [result.prompt_tokens for result in completed if result.prompt_tokens is not None]
    burstiness: float | None = 1.0 if isinstance(arrivals, Poisson) else getattr(arrivals, "burstiness", None)
    return {
        "num_prompts": len(requests),
        "request_rate": planned_rate(arrivals, requests),
        "burstiness": burstiness,
        "max_concurrency": arrivals.concurrency if isinstance(arrivals, ClosedLoop) else None,
        "total_input_tokens": sum(counted) if len(counted) == len(completed) else None,
        "total_output_tokens": sum(len(result.token_s) for result in completed),
    }
