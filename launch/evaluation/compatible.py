"""Under which keys do programs that read results of `vllm bench` find ours?

Pure. The values are ours, the keys and units (ms) are vLLM's; where the formulas differ, docs/metrics.md says how. A
latency of no requests is null here, where vLLM writes 0.
"""

from collections.abc import Sequence

from launch.evaluation.intervals import Estimate
from launch.evaluation.measures import Measures, Summary
from launch.evaluation.results import Outcome, RequestResult
from launch.evaluation.slo import Slo, judge

Keys = dict[str, float | int | None]


def vllm_keys(measures: Measures, results: Sequence[RequestResult], slo: Slo | None = None) -> Keys:
    """
    Args:
        results: what `measures` was made of, all of the run.
        slo: None leaves `request_goodput` null, as vLLM does.
    """
    keys: Keys = {
        "duration": measures.window.duration_s,
        "completed": measures.outcomes[Outcome.COMPLETED],
        "failed": sum(count for outcome, count in measures.outcomes.items() if outcome is not Outcome.COMPLETED),
        "request_throughput": measures.completed_per_s,
        "request_goodput": _good_per_s(measures, results, slo) if slo is not None else None,
        "output_throughput": measures.output_tokens_per_s,
    }
    named = {"ttft": measures.ttft, "tpot": measures.tpot, "itl": measures.itl, "e2el": measures.e2e}
    for name, summary in named.items():
        keys |= _latency(name, summary)
    return keys


def _latency(name: str, summary: Summary) -> Keys:
    return {
        f"mean_{name}_ms": _ms(summary.mean),
        f"median_{name}_ms": _ms(summary.percentiles.get("p50")),
        f"p99_{name}_ms": _ms(summary.percentiles.get("p99")),
    }


def _good_per_s(measures: Measures, results: Sequence[RequestResult], slo: Slo) -> float | None:
    good = sum(judge(result, slo).every for result in results if measures.window.has(result.end_s))
    return good / measures.window.duration_s if measures.window.duration_s > 0 else None


def _ms(estimate: Estimate | None) -> float | None:
    return estimate.value * 1000.0 if estimate is not None else None
