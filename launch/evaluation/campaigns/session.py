"""What does a campaign stand on: how a load is run, what was measured so far, which requests has no system seen?

A campaign decides which load comes next; it opens nothing and waits for nobody but `RunLoad`. What it learns goes into
the `Session` at once, or when it ends, however it ends: a cancelled campaign leaves there what its finished runs say.
"""

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Protocol

from msgspec import Meta, Struct

from launch.evaluation.arrivals import Arrivals, Poisson
from launch.evaluation.campaigns.progress import Course, Progress
from launch.evaluation.results import RequestResult, arriving
from launch.evaluation.slo import Attainments, Slo, attain
from launch.evaluation.study import Duel, Goodput, RegionMap, Run
from launch.evaluation.workload import Workload

RunLoad = Callable[[str, Workload, Arrivals, str], Awaitable[tuple[Run, list[RequestResult]]]]
"""Of a system's name, requests, arrivals as asked and a purpose: the summary and the requests. `Run.measures.window`
leaves out what the runner takes for warm-up and cool-down; campaigns judge by the same window. A run that is stopped
has to raise: what it cut off would count as missed."""


class Source(Protocol):
    def workload(self, arrivals: Arrivals, count: int, first: int) -> Workload:
        """`count` requests from number `first` on; the same numbers are the same requests.

        Raises:
            ValueError: there are not so many, as at the end of a trace.
        """
        ...


class Size(Struct, frozen=True, kw_only=True):
    """Of an open-loop run: `seconds` of arrivals, and longer where that would be too few requests."""

    seconds: Annotated[float, Meta(gt=0.0)] = 60.0
    at_least: Annotated[int, Meta(ge=1)] = 100
    left_out_s: Annotated[float, Meta(ge=0.0)] = 0.0  # of warm-up and cool-down, on top

    def requests(self, rate_per_s: float) -> int:
        return max(math.ceil(rate_per_s * self.seconds), self.at_least) + math.ceil(rate_per_s * self.left_out_s)

    def planned_s(self, rate_per_s: float) -> float:
        return self.requests(rate_per_s) / rate_per_s


def ignore(_step: object) -> None:
    """For who does not want to hear of progress."""


@dataclass
class Session:
    """One study while it is measured."""

    run_load: RunLoad
    progress: Progress = ignore
    at_rate: Callable[[float], Arrivals] = Poisson  # what to ask for at a rate
    runs: list[Run] = field(default_factory=list)
    goodputs: list[Goodput] = field(default_factory=list)
    duels: list[Duel] = field(default_factory=list)
    region_map: RegionMap | None = None
    seen: dict[str, int] = field(default_factory=dict)  # by system: the first request that it has not seen

    def fresh(self, source: Source, systems: Sequence[str], arrivals: Arrivals, count: int) -> Workload:
        """Requests that none of these systems has seen: no cache of theirs can know a prompt."""
        first = max(self.seen.get(system, 0) for system in systems)
        workload = source.workload(arrivals, count, first)
        for system in systems:
            self.seen[system] = first + count
        return workload

    async def run(
        self, system: str, workload: Workload, arrivals: Arrivals, course: Course, purpose: str | None = None
    ) -> tuple[Run, list[RequestResult]]:
        """
        Args:
            purpose: of the run, if it is not that of the campaign.
        """
        step = course.step(system, arrivals, len(workload.requests))
        self.progress(step)
        run, results = await self.run_load(system, workload, arrivals, purpose or course.campaign)
        self.runs.append(run)
        course.finish(run.seconds)
        self.progress(course.finished(step, run))
        return run, results


def lagging(run: Run) -> bool:
    """The client did not send as planned: nothing may rest on this run."""
    return run.dispatch is not None and not run.dispatch.honest


def saturated(run: Run) -> bool:
    return run.saturation is not None and run.saturation.found


def attained(run: Run, results: Sequence[RequestResult], slo: Slo) -> Attainments:
    """In the window of the run."""
    return attain(arriving(results, run.measures.window), slo)
