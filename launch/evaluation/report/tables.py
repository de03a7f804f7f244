"""Which numbers stand in the tables?

Pure. Rows of text, in the order in which the page shows them; all latencies are in ms.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from msgspec import Struct

from launch.evaluation.measures import PERCENTS, Measures, Summary
from launch.evaluation.report import words
from launch.evaluation.report.duels import region_slo
from launch.evaluation.report.stages import Bar, places_of, stages_of
from launch.evaluation.results import RequestResult
from launch.evaluation.study import Run, Study

_ERRORS = 5


class Table(Struct, frozen=True, kw_only=True):
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class RunTables(Struct, frozen=True, kw_only=True):
    run_id: str
    summary: str
    facts: Table
    latencies: Table
    errors: Table


def overview(study: Study) -> Table:
    """Of all runs, without the intervals of latencies, which the table of each run has."""
    head = ("run", "system", "for", "load", "requests", "attainment (%)", "TTFT p50 (ms)", "TTFT p99 (ms)")
    more = ("TPOT p50 (ms)", "TPOT p99 (ms)", "output (tokens/s)", "remarks")
    return Table(head=(*head, *more), rows=tuple(_overview_row(run) for run in study.runs))


def of_run(run: Run, results: Sequence[RequestResult]) -> RunTables:
    measures = run.measures
    errors = Counter(one.error for one in results if one.error is not None)
    return RunTables(
        run_id=run.run_id,
        summary=f"{run.run_id}: {run.system}, {words.load(run.arrivals, run.rate_per_s)}",
        facts=Table(head=("", ""), rows=tuple(_facts(run))),
        latencies=Table(
            head=("latency (ms)", "n", "mean", "std", "min", *(f"p{percent}" for percent in PERCENTS), "max"),
            rows=tuple(_latency_row(name, summary) for name, summary in _summaries(measures).items()),
        ),
        errors=Table(
            head=("error", "requests"), rows=tuple((text, f"{n:,}") for text, n in errors.most_common(_ERRORS))
        ),
    )


def stage_table(found: Sequence[Bar]) -> Table:
    stages = stages_of(found)
    return Table(
        head=("mean (ms), share of E2E", *(f"{bar.system}, {bar.label}" for bar in found)),
        rows=(
            *((stage, *(_stage(bar, bar.seconds.get(stage)) for bar in found)) for stage in stages),
            *((f"of it {place}", *(_stage(bar, bar.places.get(place)) for bar in found)) for place in places_of(found)),
            ("E2E", *(words.number(bar.e2e_s * 1000.0) for bar in found)),
            ("requests", *(f"{bar.requests:,}" for bar in found)),
        ),
    )


def region_table(study: Study) -> Table:
    map_ = study.region_map
    head = (
        "prompt (tokens)",
        "output (tokens)",
        "SLO",
        "A kept it (%)",
        "B kept it (%)",
        "winner",
        "B - A (percentage points)",
        "pairs",
    )
    return Table(
        head=head,
        rows=tuple(
            (
                f"{region.cell.prompt_tokens:,}",
                f"{region.cell.output_tokens:,}",
                region_slo(region.cell.slo),
                *((words.number(100.0 * share) for share in region.shares) if region.shares is not None else ("", "")),
                {"A": map_.a, "B": map_.b}[region.winner.value] if region.winner is not None else "none shown",
                words.estimate(region.comparison.effect, 100.0),
                str(region.comparison.pairs),
            )
            for region in map_.regions
        )
        if map_ is not None
        else (),
    )


def environment(facts: Mapping[str, str]) -> Table:
    return Table(head=("", ""), rows=tuple(facts.items()))


def _overview_row(run: Run) -> tuple[str, ...]:
    measures = run.measures
    remarks = [
        *(["stopped by hand"] if run.stopped else []),
        *(["client lagged"] if run.dispatch is not None and not run.dispatch.honest else []),
        *(["no steady state"] if run.saturation is not None and run.saturation.found else []),
        *(f"{n} {name.value.replace('_', ' ')}" for name, n in measures.outcomes.items() if n and name != "completed"),
    ]
    return (
        run.run_id,
        run.system,
        run.purpose,
        words.load(run.arrivals, run.rate_per_s),
        f"{sum(measures.outcomes.values()):,}",
        words.share(run.attainments.every) if run.attainments is not None else words.NONE,
        *(_value(of, percent) for of in (measures.ttft, measures.tpot) for percent in ("p50", "p99")),
        words.number(measures.output_tokens_per_s),
        ", ".join(remarks),
    )


def _facts(run: Run) -> list[tuple[str, str]]:
    measures = run.measures
    window = f"{words.number(measures.window.start_s)} s to {words.number(measures.window.end_s)} s"
    facts = [
        ("for", run.purpose),
        ("requests", f"{run.requests:,} in {words.duration(run.seconds)}; window {window}"),
        (
            "lengths, as planned",
            f"{_tokens(run.prompt_tokens)} in, {words.number(run.output_tokens)} tokens out (means)",
        ),
        (
            "outcomes in the window",
            ", ".join(f"{n:,} {name}" for name, n in measures.outcomes.items()).replace("_", " "),
        ),
        ("completed", f"{words.number(measures.completed_per_s)} requests/s"),
        ("output throughput", f"{words.number(measures.output_tokens_per_s)} tokens/s"),
        ("prompt throughput", f"{words.number(measures.prompt_tokens_per_s)} tokens/s"),
    ]
    if run.attainments is not None:
        named = {"whole SLO": run.attainments.every, "TTFT": run.attainments.ttft_only}
        named["gaps"] = run.attainments.gaps_only
        facts += [
            (
                f"attainment, {name}",
                f"{words.share(of)} %: {of.met:,} of {of.total:,}, which count as {of.effective_total:,.0f}",
            )
            for name, of in named.items()
        ]
        facts.append(("request_goodput of vllm bench", f"{words.number(run.vllm.get('request_goodput'))} requests/s"))
    if run.dispatch is not None:
        lag = run.dispatch
        lags = (lag.lag_p50_s, lag.lag_p99_s, lag.lag_max_s)
        facts.append(("dispatch lag (p50, p99, max)", ", ".join(words.duration(one) for one in lags)))
        rates = f"{words.number(lag.planned_per_s)} planned, {words.number(lag.sent_per_s)} sent requests/s"
        facts.append(("rate", rates))
        facts.append(("the client", lag.complaint or "kept to the plan"))
    if run.saturation is not None:
        growth = run.saturation
        facts.append(("growth of TTFT", f"{words.estimate(growth.ttft_growth, 1000.0)} ms per s of load"))
        facts.append(("left over", f"{words.estimate(growth.backlog_growth, 100.0)} of 100 requests that arrive"))
        facts.append(("steady state", growth.complaint or "nothing speaks against it"))
    return facts


def _tokens(mean: float | None) -> str:
    return "text" if mean is None else f"{words.number(mean)} tokens"


def _summaries(measures: Measures) -> dict[str, Summary]:
    return {
        "TTFT": measures.ttft,
        "TPOT": measures.tpot,
        "ITL": measures.itl,
        "hand-off gap": measures.handoff_gap,
        "longest stall": measures.longest_stall,
        "E2E": measures.e2e,
    }


def _latency_row(name: str, of: Summary) -> tuple[str, ...]:
    return (
        name,
        f"{of.count:,}",
        words.estimate(of.mean, 1000.0),
        _ms(of.std_s),
        _ms(of.min_s),
        *(_percentile(of, f"p{percent}") for percent in PERCENTS),
        _ms(of.max_s),
    )


def _value(of: Summary, percent: str) -> str:
    found = of.percentiles.get(percent)
    return _ms(found.value if found is not None else None)


def _percentile(of: Summary, percent: str) -> str:
    return words.estimate(of.percentiles.get(percent), 1000.0)


def _stage(bar: Bar, seconds: float | None) -> str:
    if seconds is None:
        return words.NONE
    share = f", {100.0 * seconds / bar.e2e_s:.0f} %" if bar.e2e_s > 0.0 else ""
    return f"{words.number(seconds * 1000.0)}{share}"


def _ms(seconds: float | None) -> str:
    return words.number(seconds * 1000.0) if seconds is not None else words.NONE
