"""In which region of prompt length x output length x SLO does each of two systems win?

For each shape, a prompt length with an output length:

1. Lone requests on both systems, one after the other. The SLOs of the shape are multiples of the lower median TTFT and
   TPOT, as in DistServe, so that "tight" means the same for every shape; or of the SLO that the user has given.
2. A closed loop of a few requests on both systems. By Little's law (1961) each then serves `under_way / mean E2E`
   requests per second, and can bear that by construction; the load is a part of the higher of the two. The lone E2E
   would promise more: two long prompts under way at a lone E2E each are twice what one prefill worker can do.
3. Alternating pairs of runs at that load. One run is judged by every SLO; the winner is
   `launch.evaluation.regions:regions`'.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from msgspec import Meta, Struct

from launch.evaluation.arrivals import Arrivals, ClosedLoop
from launch.evaluation.campaigns.progress import Course
from launch.evaluation.campaigns.session import Session, Size, Source, attained, lagging
from launch.evaluation.compare import Pair, Side, pairs_of, schedule
from launch.evaluation.lengths import Tokens
from launch.evaluation.measures import latencies
from launch.evaluation.regions import Cell, regions
from launch.evaluation.results import Outcome, RequestResult
from launch.evaluation.slo import Slo
from launch.evaluation.study import RegionMap
from launch.evaluation.workload import Workload

_Few = Annotated[int, Meta(ge=1)]


class Shape(Struct, frozen=True, kw_only=True):
    prompt_tokens: Tokens
    output_tokens: Tokens


class RegionOptions(Struct, frozen=True, kw_only=True):
    shapes: tuple[Shape, ...]
    slo: Slo | None = None  # None: the better system's lone median TTFT and TPOT
    factors: tuple[Annotated[float, Meta(gt=0.0)], ...] = (1.5, 3.0, 6.0)  # of it
    pairs: Annotated[int, Meta(ge=2)] = 6
    size: Size = Size(seconds=30.0, at_least=40)
    lone_requests: _Few = 5
    under_way: _Few = 4
    loop_requests: _Few = 24
    load: Annotated[float, Meta(gt=0.0)] = 0.7  # of the throughput with `under_way` requests
    minimal_effect: float = 0.05
    error: float = 0.01  # how often a map of two equal systems may name any winner


class Calibration(Struct, frozen=True, kw_only=True):
    """Of one shape on two systems: the better value of each."""

    ttft_s: float
    tpot_s: float | None  # None: answers of one token
    throughput_per_s: float


async def map_regions(
    session: Session, sources: Callable[[Shape], Source], a: str, b: str, options: RegionOptions
) -> RegionMap | None:
    """None if no pair of runs can be compared.

    Args:
        sources: of requests of one shape. The numbers of requests go on from shape to shape.
    """
    if a == b:
        raise ValueError(f"both systems are called {a}")
    course = Course("regions", [None] * (len(options.shapes) * (4 + 2 * options.pairs)))
    survey = _Survey(session, {Side.A: a, Side.B: b}, options, course)
    try:
        for shape in options.shapes:
            await survey.shape(sources(shape), shape)
    finally:
        session.region_map = survey.map()
    return session.region_map


@dataclass
class _Survey:
    """What is known so far."""

    session: Session
    names: dict[Side, str]
    options: RegionOptions
    course: Course
    attainments: dict[Cell, list[Pair]] = field(default_factory=dict)
    rates_per_s: list[float] = field(default_factory=list)
    lagging: int = 0
    unserved: list[Shape] = field(default_factory=list)  # no answer from one of the systems, so nothing to go by

    async def shape(self, source: Source, shape: Shape) -> None:
        lone = await self._closed(source, 1, self.options.lone_requests)
        loop = await self._closed(source, self.options.under_way, self.options.loop_requests)
        calibration = calibrated(lone, loop, self.options.under_way)
        if calibration is None:
            self.unserved.append(shape)
            del self.course.rest[: 2 * self.options.pairs]
            return
        rate = _rounded(self.options.load * calibration.throughput_per_s)
        self.rates_per_s.append(rate)
        cells = cells_of(shape, calibration, self.options)
        sides = schedule(self.options.pairs)
        for first in range(0, len(sides), 2):
            await self._pair(source, rate, sides[first : first + 2], cells)

    async def _closed(self, source: Source, concurrency: int, count: int) -> list[list[RequestResult]]:
        arrivals = ClosedLoop(concurrency)
        workload = self._fresh(source, arrivals, max(count, concurrency))
        return [
            (await self.session.run(name, workload, arrivals, self.course, "calibration"))[1]
            for name in self.names.values()
        ]

    async def _pair(self, source: Source, rate_per_s: float, sides: Sequence[Side], cells: Sequence[Cell]) -> None:
        arrivals = self.session.at_rate(rate_per_s)
        workload = self._fresh(source, arrivals, self.options.size.requests(rate_per_s))
        honest, shares = True, []
        for side in sides:
            run, results = await self.session.run(self.names[side], workload, arrivals, self.course)
            honest = honest and not lagging(run)
            shares.append([attained(run, results, cell.slo).every.share() for cell in cells])
        self.lagging += not honest
        for cell, estimates in zip(cells, zip(*shares, strict=True), strict=True):
            values = [estimate.value for estimate in estimates if estimate is not None]
            if honest and len(values) == len(sides):
                self.attainments.setdefault(cell, []).extend(pairs_of(sides, values))

    def _fresh(self, source: Source, arrivals: Arrivals, count: int) -> Workload:
        return self.session.fresh(source, list(self.names.values()), arrivals, count)

    def map(self) -> RegionMap | None:
        """A map of some of the cells has only their part of the chance to be wrong."""
        if not self.attainments:
            return None
        planned = max(len(self.options.shapes) * len(self.options.factors), len(self.attainments))
        error = self.options.error * len(self.attainments) / planned
        return RegionMap(
            a=self.names[Side.A],
            b=self.names[Side.B],
            regions=regions(self.attainments, self.options.minimal_effect, error),
            how=self._how(),
        )

    def _how(self) -> str:
        options = self.options
        factors = ", ".join(f"{factor:g}" for factor in options.factors)
        slo = "the SLO given" if options.slo is not None else "the lower median TTFT and TPOT of lone requests"
        rates = f"{min(self.rates_per_s):.3g} to {max(self.rates_per_s):.3g}"
        text = (
            f"Load: {options.load:g} of the higher throughput with {options.under_way} requests under way, of each"
            f" shape ({rates} requests/s). SLO: {factors} times {slo}. Winner: attainment higher by"
            f" {100 * options.minimal_effect:g} points or more, with certainty, in {options.pairs} alternating pairs of"
            f" runs; of maps of two equal systems, {100 * options.error:g} % name a winner at most."
        )
        if self.lagging:
            text += f" {self.lagging} pair{'s' if self.lagging > 1 else ''} left out because the client lagged."
        if self.unserved:
            shapes = ", ".join(f"{shape.prompt_tokens} -> {shape.output_tokens}" for shape in self.unserved)
            text += f" Without an answer: {shapes}."
        return text


def calibrated(
    lone: Sequence[Sequence[RequestResult]], loop: Sequence[Sequence[RequestResult]], under_way: int
) -> Calibration | None:
    """Pure. Of both systems' requests, alone and `under_way` at a time; None if one of the two answered nothing."""
    alone = [[latencies(one) for one in results if one.outcome is Outcome.COMPLETED] for results in lone]
    ttfts = [[one.ttft_s for one in seen if one.ttft_s is not None] for seen in alone]
    tpots = [[one.tpot_s for one in seen if one.tpot_s is not None] for seen in alone]
    e2es = [
        [one.token_s[-1] - one.sent_s for one in results if one.outcome is Outcome.COMPLETED and one.token_s]
        for results in loop
    ]
    if not all(ttfts) or not all(e2es):
        return None
    return Calibration(
        ttft_s=min(map(statistics.median, ttfts)),
        tpot_s=min(map(statistics.median, tpots)) if all(tpots) else None,
        throughput_per_s=max(under_way / statistics.fmean(values) for values in e2es),
    )


def cells_of(shape: Shape, calibration: Calibration, options: RegionOptions) -> tuple[Cell, ...]:
    """Pure. Bounds have three digits: they are read by people."""
    reference = options.slo or Slo(ttft_s=calibration.ttft_s, tpot_s=calibration.tpot_s or None)
    slos = [_readable(reference.scaled(factor)) for factor in options.factors]
    return tuple(
        Cell(prompt_tokens=shape.prompt_tokens, output_tokens=shape.output_tokens, slo=slo)
        for slo in dict.fromkeys(slos)
    )


def _readable(slo: Slo) -> Slo:
    return Slo(**{name: _rounded(bound) for name in slo.__struct_fields__ if (bound := getattr(slo, name)) is not None})


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
