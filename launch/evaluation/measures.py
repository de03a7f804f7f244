"""What did the client see?

Pure. Latencies are those of completed requests that arrive in the window; what the words mean is in
`launch.evaluation.definitions`. Rates count what *happens* in the window, whoever it happens to: to count those who
arrive in it and end later would make an overloaded server look as fast as its load.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import numpy as np
from msgspec import Struct

from launch.evaluation.intervals import Estimate, clustered_mean, clustered_percentile, mean, percentile
from launch.evaluation.results import Outcome, RequestResult, Window, arriving

PERCENTS = (50, 90, 95, 99)


class Latencies(Struct, frozen=True, kw_only=True):
    """Of one request; None where it has no such thing."""

    ttft_s: float | None
    gaps_s: tuple[float, ...]  # each one is an ITL
    tpot_s: float | None
    handoff_gap_s: float | None
    longest_stall_s: float | None
    e2e_s: float | None


class Summary(Struct, frozen=True, kw_only=True):
    """Of one latency over requests, or over gaps."""

    count: int
    mean: Estimate | None = None
    std_s: float | None = None
    min_s: float | None = None
    max_s: float | None = None
    percentiles: dict[str, Estimate] = {}  # "p50" and so on; empty of nothing


class Measures(Struct, frozen=True, kw_only=True):
    window: Window
    outcomes: dict[Outcome, int]  # of the requests that arrive in the window
    ttft: Summary
    itl: Summary  # over all gaps of all requests
    tpot: Summary  # one value per request: the mean of its gaps
    handoff_gap: Summary
    longest_stall: Summary
    e2e: Summary
    completed_per_s: float | None
    output_tokens_per_s: float | None
    prompt_tokens_per_s: float | None  # by first token; None also where a server did not count


def latencies(result: RequestResult) -> Latencies:
    times = result.token_s
    gaps = tuple(later - earlier for earlier, later in pairwise(times))
    return Latencies(
        ttft_s=times[0] - result.sent_s if times else None,
        gaps_s=gaps,
        tpot_s=(times[-1] - times[0]) / len(gaps) if gaps else None,
        handoff_gap_s=gaps[0] if gaps else None,
        longest_stall_s=max(gaps) if gaps else None,
        e2e_s=times[-1] - result.sent_s if times else None,
    )


def whole(results: Sequence[RequestResult]) -> Window:
    """First planned arrival to the last end, both of them in it."""
    start_s = min((min(result.arrival_s, result.sent_s) for result in results), default=0.0)
    end_s = max((max(result.arrival_s, result.end_s) for result in results), default=0.0)
    return Window(start_s=start_s, end_s=math.nextafter(end_s, math.inf))


def measure(results: Sequence[RequestResult], window: Window | None = None) -> Measures:
    """
    Args:
        window: None for the whole run.
    """
    window = window or whole(results)
    measured = arriving(results, window)
    seen = [latencies(result) for result in measured if result.outcome is Outcome.COMPLETED]
    prompt_tokens = [result.prompt_tokens for result in results if result.token_s and window.has(result.token_s[0])]
    ended = sum(window.has(result.end_s) for result in results if result.outcome is Outcome.COMPLETED)
    return Measures(
        window=window,
        outcomes={outcome: sum(result.outcome is outcome for result in measured) for outcome in Outcome},
        ttft=_per_request(seen, lambda one: one.ttft_s),
        itl=_pooled([one.gaps_s for one in seen if one.gaps_s]),
        tpot=_per_request(seen, lambda one: one.tpot_s),
        handoff_gap=_per_request(seen, lambda one: one.handoff_gap_s),
        longest_stall=_per_request(seen, lambda one: one.longest_stall_s),
        e2e=_per_request(seen, lambda one: one.e2e_s),
        completed_per_s=_rate(ended, window),
        output_tokens_per_s=_rate(sum(window.has(at) for result in results for at in result.token_s), window),
        prompt_tokens_per_s=None
        if None in prompt_tokens
        else _rate(sum(tokens for tokens in prompt_tokens if tokens is not None), window),
    )


def _per_request(seen: Iterable[Latencies], pick: Callable[[Latencies], float | None]) -> Summary:
    values = np.array([value for value in map(pick, seen) if value is not None], dtype=np.float64)
    return _summary(values, mean(values), {percent: percentile(values, percent) for percent in PERCENTS})


def _pooled(clusters: Sequence[tuple[float, ...]]) -> Summary:
    values = np.array([gap for gaps in clusters for gap in gaps], dtype=np.float64)
    percentiles = {percent: clustered_percentile(clusters, percent) for percent in PERCENTS}
    return _summary(values, clustered_mean(clusters), percentiles)


def _summary(
    values: np.ndarray[tuple[int], np.dtype[np.float64]],
    centre: Estimate | None,
    percentiles: dict[int, Estimate | None],
) -> Summary:
    if values.size == 0:
        return Summary(count=0)
    return Summary(
        count=values.size,
        mean=centre,
        std_s=float(values.std()),  # of the population, as NumPy and vllm bench have it
        min_s=float(values.min()),
        max_s=float(values.max()),
        percentiles={f"p{percent}": estimate for percent, estimate in percentiles.items() if estimate is not None},
    )


def _rate(count: float, window: Window) -> float | None:
    return count / window.duration_s if window.duration_s > 0 else None
