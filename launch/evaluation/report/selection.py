"""Which runs does a figure show?

Pure. A study may hold dozens of runs: those of a search, of a sweep, of pairs. What is drawn together has to be
comparable: the same requests under the same load.
"""

import math
from collections.abc import Mapping, Sequence

from msgspec import Struct

from launch.evaluation.arrivals import ClosedLoop
from launch.evaluation.report import words
from launch.evaluation.results import RequestResult, arriving
from launch.evaluation.slo import Attainments, pool
from launch.evaluation.study import OF_OTHER_LOADS, Run, Study


class RatePoint(Struct, frozen=True, kw_only=True):
    """All runs of one system at one rate."""

    rate_per_s: float
    attainments: Attainments | None  # pooled; None without an SLO
    runs: tuple[Run, ...]
    steady: bool  # in at least half of the runs


class Shown(Struct, frozen=True, kw_only=True):
    """The runs of one system in the figures that look at single requests."""

    system: str
    runs: tuple[Run, ...]
    results: tuple[RequestResult, ...]  # of all these runs, those that arrive in their windows


class Interest(Struct, frozen=True, kw_only=True):
    shown: tuple[Shown, ...]  # in the order of the study's systems
    reason: str  # for captions: which load, and why this one


def comparable(study: Study) -> tuple[Run, ...]:
    """Whole runs; those that were stopped by hand only where there are no others."""
    runs = [run for run in study.runs if run.purpose not in OF_OTHER_LOADS]
    return tuple(run for run in runs if not run.stopped) or tuple(runs)


def is_steady(run: Run) -> bool:
    return run.saturation is None or not run.saturation.found


def is_honest(run: Run) -> bool:
    return run.dispatch is None or run.dispatch.honest


def by_rate(study: Study, system: str) -> tuple[RatePoint, ...]:
    """In ascending order; a run whose client lagged says nothing about its rate and is left out."""
    rates: dict[float, list[Run]] = {}
    for run in comparable(study):
        if run.system == system and run.rate_per_s is not None and is_honest(run):
            rates.setdefault(run.rate_per_s, []).append(run)
    return tuple(
        RatePoint(
            rate_per_s=rate,
            attainments=_pooled([run.attainments for run in rates[rate] if run.attainments is not None]),
            runs=tuple(rates[rate]),
            steady=2 * sum(map(is_steady, rates[rate])) >= len(rates[rate]),
        )
        for rate in sorted(rates)
    )


def of_interest(study: Study, results: Mapping[str, Sequence[RequestResult]]) -> Interest | None:
    """The heaviest load that all systems bore; None if no run has kept its requests."""
    kept = [run for run in comparable(study) if results.get(run.run_id)]
    systems = [system.name for system in study.systems if any(run.system == system.name for run in kept)]
    if not systems:
        return None
    loads: dict[tuple[str, float], list[Run]] = {}
    for run in kept:
        loads.setdefault(_load(run), []).append(run)
    common = {load: runs for load, runs in loads.items() if {run.system for run in runs} == set(systems)}
    sound = {
        load: runs for load, runs in common.items() if all(_sound([r for r in runs if r.system == s]) for s in systems)
    }
    if common:
        _, runs = max((sound or common).items(), key=lambda item: item[0][1])
        chosen = {system: [run for run in runs if run.system == system] for system in systems}
        named = words.load(runs[0].arrivals, runs[0].rate_per_s)
        return Interest(shown=_shown(chosen, results), reason=f"At {named}{_why(len(common), bool(sound), systems)}")
    chosen = {}
    for system in systems:
        own = [run for run in kept if run.system == system]
        steady = [run for run in own if is_steady(run) and is_honest(run)] or own
        chosen[system] = [max(steady, key=lambda run: _load(run)[1])]
    named = "; ".join(f"{name}: {words.load(runs[0].arrivals, runs[0].rate_per_s)}" for name, runs in chosen.items())
    return Interest(
        shown=_shown(chosen, results),
        reason=f"No load was given to all systems, so these loads differ, and compare nothing: {named}",
    )


def _why(loads: int, sound: bool, systems: Sequence[str]) -> str:
    if not sound:
        return ", where a system had no steady state or the client lagged: the latencies tell how long the run was"
    if loads == 1:
        return ""
    return ", the heaviest load at which " + ("all systems were" if len(systems) > 1 else "it was") + " in steady state"


def _shown(chosen: Mapping[str, Sequence[Run]], results: Mapping[str, Sequence[RequestResult]]) -> tuple[Shown, ...]:
    return tuple(
        Shown(
            system=system,
            runs=tuple(runs),
            results=tuple(one for run in runs for one in arriving(results[run.run_id], run.measures.window)),
        )
        for system, runs in chosen.items()
    )


def _sound(runs: Sequence[Run]) -> bool:
    return 2 * sum(is_steady(run) and is_honest(run) for run in runs) >= len(runs)


def _load(run: Run) -> tuple[str, float]:
    """Equal for runs under the same load; the second part is how heavy it is."""
    if isinstance(run.arrivals, ClosedLoop):
        return "closed loop", float(run.arrivals.concurrency)
    return type(run.arrivals).__name__, run.rate_per_s if run.rate_per_s is not None else -math.inf


def _pooled(runs: Sequence[Attainments]) -> Attainments | None:
    if not runs:
        return None
    return Attainments(
        every=pool([run.every for run in runs]),
        ttft_only=pool([run.ttft_only for run in runs]),
        gaps_only=pool([run.gaps_only for run in runs]),
    )
