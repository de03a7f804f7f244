"""What follows from a study, and what speaks against it?

Pure. The sentences and the box that a reader sees first.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

from msgspec import Struct

from launch.evaluation.goodput import REMARKS
from launch.evaluation.report import words
from launch.evaluation.results import Outcome, RequestResult
from launch.evaluation.study import Goodput, Run, Study

_NAMED_RUNS = 4
_DOUBTS = (" cut to ", "stopped by hand", "ended early")
"""Notes of `launch.evaluation.scaling`, `summary` and `conduct` that a reader has to see first."""


class GoodputRow(Struct, frozen=True, kw_only=True):
    system: str
    per_s: str
    per_worker: str
    attainment: str  # at that rate
    probes: int
    remark: str


def verdicts(study: Study) -> list[str]:
    """Of duels and of searches; without either, what each run says."""
    said = [duel.verdict for duel in study.duels]
    said += [ratio for one, other in combinations(study.goodputs, 2) if (ratio := _ratio(study, one, other))]
    if study.region_map is not None:
        won = Counter(region.winner for region in study.region_map.regions)
        named = {"A": study.region_map.a, "B": study.region_map.b}
        parts = [f"{named[side.value]} is better in {count}" for side, count in won.items() if side is not None]
        parts.append(f"no difference was shown in {won[None]}")
        said.append(f"Of {len(study.region_map.regions)} regions: {', '.join(parts)}.")
    return said


def goodput_rows(study: Study) -> list[GoodputRow]:
    return [_goodput_row(study, goodput) for goodput in study.goodputs]


def complaints(study: Study, results: Mapping[str, Sequence[RequestResult]]) -> list[str]:
    """Reasons to doubt a number; empty is what one hopes for."""
    said = _about(
        study,
        "the client lagged",
        "the load was not the one named",
        lambda run: run.dispatch.complaint if run.dispatch is not None else None,
    )
    said += _about(
        study,
        "no steady state",
        "latencies there tell how long the run was",
        lambda run: run.saturation.complaint if run.saturation is not None else None,
    )
    said += _outcomes(study, results)
    for goodput in study.goodputs:
        if remark := REMARKS[goodput.found.ending]:
            said.append(f"Goodput of {goodput.system}: {remark}.")
    said += [f"{note}." for note in study.workload if any(mark in note for mark in _DOUBTS)]
    if study.commit is not None and study.commit.endswith("-dirty"):
        said.append("The checkout had changes that no commit holds: nobody can repeat exactly this.")
    return said


def _about(study: Study, what: str, so: str, complaint: Callable[[Run], str | None]) -> list[str]:
    """One sentence per system, with the words of its run at the lowest rate: a search is above capacity often."""
    said = []
    for system in study.systems:
        own = [run for run in study.runs if run.system == system.name]
        bad = [run for run in own if complaint(run)]
        if bad:
            rates = sorted({run.rate_per_s for run in bad if run.rate_per_s is not None})
            at = f" (at {words.planned(rates[0])} requests/s" if rates else ""
            at += f" to {words.planned(rates[-1])}" if len(rates) > 1 else ""
            at += ")" if rates else ""
            first = min(bad, key=lambda run: run.rate_per_s or 0.0)
            words_of_run = f"Run {first.run_id}: {complaint(first)}."
            said.append(f"{system.name}: {what} in {len(bad)} of {len(own)} runs{at}: {so}. {words_of_run}")
    return said


def _outcomes(study: Study, results: Mapping[str, Sequence[RequestResult]]) -> list[str]:
    said = []
    for system in study.systems:
        for outcome in (Outcome.FAILED, Outcome.REJECTED, Outcome.CUT_OFF):
            own = [
                run
                for run in study.runs
                if run.system == system.name and not (run.stopped and outcome is Outcome.CUT_OFF)
            ]
            total = sum(sum(run.measures.outcomes.values()) for run in own)
            count = sum(run.measures.outcomes.get(outcome, 0) for run in own)
            if not count:
                continue
            errors = Counter(
                one.error or "no reason given"
                for run in own
                for one in results.get(run.run_id, ())
                if one.outcome is outcome and run.measures.window.has(one.arrival_s)
            )
            runs = [run.run_id for run in own if run.measures.outcomes.get(outcome, 0)]
            named = ", ".join(runs[:_NAMED_RUNS]) + (
                f" and {len(runs) - _NAMED_RUNS} more" if runs[_NAMED_RUNS:] else ""
            )
            most = f"; most often: {errors.most_common(1)[0][0][:200]}" if errors and outcome is Outcome.FAILED else ""
            said.append(
                f"{system.name}: {count:,} of {total:,} requests {outcome.value.replace('_', ' ')} (in {named}){most}."
                " They are in no latency and miss the SLO."
            )
    return said


def _ratio(study: Study, one: Goodput, other: Goodput) -> str | None:
    """Of two goodputs; the interval is from the ends of both, which is wider than 95 %. None where it has no end: two
    searches that ran out of probes at one rate have not found two equal systems."""
    if one.found.goodput_per_s is None or other.found.goodput_per_s is None:
        return None
    ends = (one.found.low_per_s, one.found.high_per_s, other.found.low_per_s, other.found.high_per_s)
    text = f"Goodput of {other.system} is {words.number(other.found.goodput_per_s / one.found.goodput_per_s)} times"
    text += f" that of {one.system}"
    low_1, high_1, low_2, high_2 = ends
    low = low_2 / high_1 if low_2 is not None and high_1 is not None else None
    high = high_2 / low_1 if high_2 is not None and low_1 is not None else None
    if low is None and high is None:
        return None
    text += f" {words.interval(low, high)}"
    workers = {system.name: system.workers for system in study.systems}
    n_1, n_2 = workers.get(one.system), workers.get(other.system)
    if n_1 and n_2 and n_1 != n_2:
        per_worker = other.found.goodput_per_s / n_2 / (one.found.goodput_per_s / n_1)
        text += f", per worker {words.number(per_worker)} times"
        text += f" {words.interval(_times(low, n_1 / n_2), _times(high, n_1 / n_2))}".rstrip()
    return text + "."


def _goodput_row(study: Study, goodput: Goodput) -> GoodputRow:
    found = goodput.found
    workers = next((system.workers for system in study.systems if system.name == goodput.system), None)
    at = next((rate for rate in found.rates if rate.rate_per_s == found.goodput_per_s), None)
    return GoodputRow(
        system=goodput.system,
        per_s=_rate(goodput, 1),
        per_worker=f"{_rate(goodput, workers)}, {workers} workers" if workers else words.NONE,
        attainment=words.share(at.attainment) if at is not None else words.NONE,
        probes=len(goodput.run_ids),
        remark=REMARKS[found.ending],
    )


def _rate(goodput: Goodput, workers: int) -> str:
    found = goodput.found
    if found.goodput_per_s is None:
        return "none"
    text = words.number(found.goodput_per_s / workers)
    return (
        f"{text} {words.interval(_times(found.low_per_s, 1 / workers), _times(found.high_per_s, 1 / workers))}".rstrip()
    )


def _times(value: float | None, factor: float) -> float | None:
    return value * factor if value is not None else None
