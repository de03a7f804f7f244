"""Which of two systems is better at what, under one load?

Both sides of a pair get the same requests, the next pair gets new ones, and who is first alternates. Pairs in which the
client lagged are left out of everything: a late client offers a gentler load, and to one side only.
"""

from collections.abc import Callable, Sequence
from typing import Annotated

from msgspec import Meta, Struct

from launch.evaluation.arrivals import Arrivals, ClosedLoop, TraceClock
from launch.evaluation.campaigns.progress import Course, load_in_words
from launch.evaluation.campaigns.session import Session, Source, attained, lagging, saturated
from launch.evaluation.campaigns.verdict import Circumstances, verdict
from launch.evaluation.compare import Measure, Pair, Scale, Side, compare, schedule
from launch.evaluation.measures import Summary
from launch.evaluation.results import Outcome
from launch.evaluation.slo import Slo
from launch.evaluation.study import Duel, Run


class DuelOptions(Struct, frozen=True, kw_only=True):
    arrivals: Arrivals
    requests: Annotated[int, Meta(ge=1)]  # of each run
    pairs: Annotated[int, Meta(ge=2)] = 10
    slo: Slo | None = None
    error: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.01  # how often two equal systems may be told apart by any measure
    minimal_effect: Annotated[float, Meta(ge=0.0)] = 0.02  # smaller differences are none


class Fought(Struct, frozen=True, kw_only=True):
    """One run of a pair."""

    side: Side
    run: Run
    attainment: float | None  # share; None: no SLO, or no request in the window


async def duel(session: Session, source: Source, a: str, b: str, options: DuelOptions) -> Duel:
    """
    Raises:
        ValueError: a system cannot be compared with itself under one name.
    """
    if a == b:
        raise ValueError(f"both systems are called {a}")
    names = {Side.A: a, Side.B: b}
    fought: list[Fought] = []
    sides = schedule(options.pairs)
    course = Course("compare", [_planned_s(options)] * len(sides))
    try:
        for number, side in enumerate(sides):
            if number % 2 == 0:
                workload = session.fresh(source, [a, b], options.arrivals, options.requests)
            run, results = await session.run(names[side], workload, options.arrivals, course)
            share = attained(run, results, options.slo).every.share() if options.slo is not None else None
            fought.append(Fought(side=side, run=run, attainment=share.value if share is not None else None))
    finally:
        session.duels += [judge(a, b, fought, options)] if fought else []
    return session.duels[-1]


def judge(a: str, b: str, fought: Sequence[Fought], options: DuelOptions) -> Duel:
    """Pure. Of the runs in the order of their schedule; a pair without its second run does not count."""
    pairs = [_by_side(fought[first : first + 2]) for first in range(0, len(fought) - 1, 2)]
    honest = [pair for pair in pairs if not any(lagging(one.run) for one in pair.values())]
    values = {measure: _values(honest, measure, read) for measure, read in _measures(options)}
    comparisons = compare(values, options.error)
    circumstances = Circumstances(
        load=load_in_words(options.arrivals),
        pairs=len(honest),
        lagging=len(pairs) - len(honest),
        saturated={
            name: sum(saturated(pair[side].run) for pair in honest) for side, name in ((Side.A, a), (Side.B, b))
        },
    )
    return Duel(
        a=a,
        b=b,
        run_ids=tuple(one.run.run_id for one in fought),
        comparisons=comparisons,
        verdict=verdict(a, b, comparisons, circumstances),
        rate_per_s=_rate(options.arrivals, [one.run for one in fought]),
    )


def _by_side(two: Sequence[Fought]) -> dict[Side, Fought]:
    return {one.side: one for one in two}


_Read = Callable[[Fought], float | None]


def _measures(options: DuelOptions) -> list[tuple[Measure, _Read]]:
    def share(name: str) -> Measure:
        effect = options.minimal_effect
        return Measure(name=name, scale=Scale.DIFFERENCE, higher_is_better=True, minimal_effect=effect)

    def ratio(name: str, *, higher_is_better: bool = False) -> Measure:
        return Measure(name=name, higher_is_better=higher_is_better, minimal_effect=options.minimal_effect)

    def of(summary: Callable[[Run], Summary], percentile: str) -> _Read:
        def read(one: Fought) -> float | None:
            estimate = summary(one.run).percentiles.get(percentile)
            return estimate.value if estimate is not None else None

        return read

    measures: list[tuple[Measure, _Read]] = []
    if options.slo is not None:
        measures.append((share("attainment"), lambda one: one.attainment))
    return [
        *measures,
        (share("completed"), _completed),
        (ratio("TTFT p50"), of(lambda run: run.measures.ttft, "p50")),
        (ratio("TTFT p99"), of(lambda run: run.measures.ttft, "p99")),
        (ratio("TPOT p50"), of(lambda run: run.measures.tpot, "p50")),
        (ratio("TPOT p99"), of(lambda run: run.measures.tpot, "p99")),
        (ratio("longest stall p99"), of(lambda run: run.measures.longest_stall, "p99")),
        (ratio("E2E p50"), of(lambda run: run.measures.e2e, "p50")),
        (ratio("output tokens/s", higher_is_better=True), lambda one: one.run.measures.output_tokens_per_s),
    ]


def _completed(one: Fought) -> float | None:
    """Latencies are those of completed requests, so who turns many away looks fast; this share tells."""
    outcomes = one.run.measures.outcomes
    total = sum(outcomes.values())
    return outcomes.get(Outcome.COMPLETED, 0) / total if total else None


def _values(pairs: Sequence[dict[Side, Fought]], measure: Measure, read: _Read) -> list[Pair]:
    """Of the pairs in which both sides have a value. A latency of 0 has no ratio: all tokens came in one chunk."""
    values = []
    for pair in pairs:
        a, b = read(pair[Side.A]), read(pair[Side.B])
        if a is not None and b is not None and (measure.scale is Scale.DIFFERENCE or min(a, b) > 0.0):
            values.append((a, b))
    return values


def _planned_s(options: DuelOptions) -> float | None:
    match options.arrivals:
        case ClosedLoop() | TraceClock():
            return None
        case _:
            return options.requests / options.arrivals.rate_per_s


def _rate(arrivals: Arrivals, runs: Sequence[Run]) -> float | None:
    match arrivals:
        case ClosedLoop():
            return None
        case TraceClock():
            return runs[0].rate_per_s if runs else None
        case _:
            return arrivals.rate_per_s
