"""Which requests met their SLO, and how sure is the share?

Pure. Every request that was sent counts: one that failed, was rejected or was cut off by the end of the run has missed
all of it (design brief, section 6). An answer of one token has no gaps and cannot miss what is asked of gaps.
"""

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta, Struct

from launch.evaluation.intervals import CONFIDENCE, Estimate, effective_trials, wilson
from launch.evaluation.measures import latencies
from launch.evaluation.results import Outcome, RequestResult

_Bound = Annotated[float, Meta(gt=0.0)]


class Slo(Struct, frozen=True, kw_only=True):
    """What a request has to keep to; None asks for nothing."""

    ttft_s: _Bound | None = None
    tpot_s: _Bound | None = None
    stall_s: _Bound | None = None  # every gap, so the longest: an SLO of ITL
    e2e_s: _Bound | None = None

    def scaled(self, factor: float) -> "Slo":
        def times(bound: float | None) -> float | None:
            return bound * factor if bound is not None else None

        return Slo(
            ttft_s=times(self.ttft_s), tpot_s=times(self.tpot_s), stall_s=times(self.stall_s), e2e_s=times(self.e2e_s)
        )


class Judgement(Struct, frozen=True, kw_only=True):
    """Of one request."""

    ttft: bool
    gaps: bool  # TPOT and stall
    every: bool  # these two and E2E


class Attainment(Struct, frozen=True, kw_only=True):
    met: int
    total: int
    effective_total: float  # as how many independent requests they count

    def share(self, confidence: float = CONFIDENCE) -> Estimate | None:
        """None of no requests; else with Wilson's interval for the effective number."""
        if self.total == 0:
            return None
        return wilson(self.met / self.total * self.effective_total, self.effective_total, confidence)


class Attainments(Struct, frozen=True, kw_only=True):
    """The three curves that papers on disaggregation draw."""

    every: Attainment
    ttft_only: Attainment
    gaps_only: Attainment


def judge(result: RequestResult, slo: Slo) -> Judgement:
    if result.outcome is not Outcome.COMPLETED:
        return Judgement(ttft=False, gaps=False, every=False)
    seen = latencies(result)
    ttft = _first_within(seen.ttft_s, slo.ttft_s)
    gaps = _within(seen.tpot_s, slo.tpot_s) and _within(seen.longest_stall_s, slo.stall_s)
    return Judgement(ttft=ttft, gaps=gaps, every=ttft and gaps and _first_within(seen.e2e_s, slo.e2e_s))


def attain(results: Sequence[RequestResult], slo: Slo) -> Attainments:
    """Of all of `results`: choose those of a window before."""
    ordered = sorted(results, key=lambda result: result.arrival_s)
    judgements = [judge(result, slo) for result in ordered]
    return Attainments(
        every=_count([judgement.every for judgement in judgements]),
        ttft_only=_count([judgement.ttft for judgement in judgements]),
        gaps_only=_count([judgement.gaps for judgement in judgements]),
    )


def pool(runs: Sequence[Attainment]) -> Attainment:
    """Of all runs together; runs that differ by more than chance count for as much less.

    The factor is that of overdispersion: chi-squared of the runs' shares over its degrees of freedom, if above 1.
    """
    met, total = sum(run.met for run in runs), sum(run.total for run in runs)
    effective = sum(run.effective_total for run in runs)
    share = met / total if total else 0.0
    filled = [run for run in runs if run.total]
    if len(filled) > 1 and 0.0 < share < 1.0:
        squares = sum(run.effective_total * (run.met / run.total - share) ** 2 for run in filled)
        effective /= max(squares / (share * (1.0 - share)) / (len(filled) - 1), 1.0)
    return Attainment(met=met, total=total, effective_total=effective)


def scale_curve(
    results: Sequence[RequestResult], slo: Slo, factors: Sequence[float]
) -> tuple[tuple[float, Attainments], ...]:
    """Attainment where every bound of the SLO is `factor` times what it is; at one load, from one run."""
    return tuple((factor, attain(results, slo.scaled(factor))) for factor in factors)


def _count(hits: Sequence[bool]) -> Attainment:
    return Attainment(met=sum(hits), total=len(hits), effective_total=effective_trials(hits))


def _within(seconds: float | None, bound: float | None) -> bool:
    return bound is None or seconds is None or seconds <= bound


def _first_within(seconds: float | None, bound: float | None) -> bool:
    """An answer without a token has kept nobody's first token in time."""
    return bound is None or (seconds is not None and seconds <= bound)
