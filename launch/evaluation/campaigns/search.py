"""What is the goodput of each of several systems?

Drives `launch.evaluation.goodput:next_step`, one probe of each system in turn: whatever the machine does over the
hours, it does to all of them. A search knows nothing of the others and ends as it would alone.
"""

from collections.abc import Mapping, Sequence

from msgspec import Struct

from launch.evaluation.arrivals import ClosedLoop, TraceClock
from launch.evaluation.campaigns.progress import Course
from launch.evaluation.campaigns.session import Session, Size, Source, attained, lagging, saturated
from launch.evaluation.goodput import Found, Probe, Search, Try, next_step, so_far
from launch.evaluation.results import RequestResult
from launch.evaluation.slo import Attainments, Slo
from launch.evaluation.study import Goodput, Run


class GoodputOptions(Struct, frozen=True, kw_only=True):
    slo: Slo
    search: Search = Search()
    size: Size = Size()


class Probed(Struct, frozen=True, kw_only=True):
    """A probe and the run that it was."""

    run_id: str
    probe: Probe


async def goodput(
    session: Session,
    source: Source,
    systems: Sequence[str],
    options: GoodputOptions,
    earlier: Mapping[str, Sequence[Probed]] | None = None,
) -> tuple[Goodput, ...]:
    """
    Args:
        earlier: probes of each system, of a search that was interrupted or of other campaigns (`told_by`). They count
            as probes of `options.search`. The caller sees to it that `session.seen` knows their requests.
    """
    probed = {system: list((earlier or {}).get(system, ())) for system in systems}
    course = Course("goodput", [])
    turn = 0
    try:
        while tries := _tries(options.search, probed):
            for system in list(tries) if turn % 2 == 0 else list(reversed(tries)):
                course.rest = _planned(options, probed, tries, system)
                probed[system].append(await _probe(session, source, system, tries[system].rate_per_s, options, course))
            turn += 1
    finally:
        session.goodputs += [_goodput(options.search, system, done) for system, done in probed.items() if done]
    return tuple(_goodput(options.search, system, done) for system, done in probed.items())


def _tries(search: Search, probed: Mapping[str, Sequence[Probed]]) -> dict[str, Try]:
    steps = {system: next_step(search, [one.probe for one in done]) for system, done in probed.items()}
    return {system: step for system, step in steps.items() if isinstance(step, Try)}


def _planned(
    options: GoodputOptions, probed: Mapping[str, Sequence[Probed]], tries: Mapping[str, Try], now: str
) -> list[float | None]:
    """The probe of `now` first. Every search that goes on may use all its probes."""
    return [
        options.size.planned_s(tries[system].rate_per_s)
        for system in sorted(tries, key=lambda system: system != now)
        for _ in range(options.search.probes - len(probed[system]))
    ]


async def _probe(
    session: Session, source: Source, system: str, rate_per_s: float, options: GoodputOptions, course: Course
) -> Probed:
    arrivals = session.at_rate(rate_per_s)
    workload = session.fresh(source, [system], arrivals, options.size.requests(rate_per_s))
    run, results = await session.run(system, workload, arrivals, course)
    return probed_of(run, results, rate_per_s, options.slo)


def probed_of(run: Run, results: Sequence[RequestResult], rate_per_s: float, slo: Slo) -> Probed:
    """Pure. Also of a run that was read back, to go on from there.

    Args:
        rate_per_s: as the search asked for it, not as it came out: probes are gathered by their rate.
    """
    return _probed(run, rate_per_s, attained(run, results, slo))


def told_by(runs: Sequence[Run]) -> dict[str, list[Probed]]:
    """Pure. What runs of other campaigns tell a search by the same SLO, by system: all whose rate was chosen."""
    told: dict[str, list[Probed]] = {}
    for run in runs:
        if isinstance(run.arrivals, TraceClock | ClosedLoop) or run.attainments is None or run.stopped:
            continue
        told.setdefault(run.system, []).append(_probed(run, run.arrivals.rate_per_s, run.attainments))
    return told


def _probed(run: Run, rate_per_s: float, attainments: Attainments) -> Probed:
    probe = Probe(rate_per_s=rate_per_s, attainment=attainments.every, saturated=saturated(run), lagging=lagging(run))
    return Probed(run_id=run.run_id, probe=probe)


def _goodput(search: Search, system: str, done: Sequence[Probed]) -> Goodput:
    found: Found = so_far(search, [one.probe for one in done])
    return Goodput(system=system, search=search, found=found, run_ids=tuple(one.run_id for one in done))
