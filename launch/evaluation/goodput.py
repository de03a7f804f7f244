"""What is the highest rate at which enough requests meet their SLO?

Pure, and without a state of its own: `next_step` reads the probes so far and says which rate to try next, so a search
that was interrupted goes on from its results.

The rate is doubled until one fails and halved until one passes; then the interval between them is bisected. A rate is
decided by Wilson's interval of all its probes together, and is tried again while that holds the target. Near the
goodput it always does, so the probes of a rate are bounded, and then the share itself decides. One rate with bad luck
would lead the search astray; so the shares are made to fall with the rate first, by pooling neighbours that do not
(isotonic regression, Ayer et al., 1955). At the end the search steps outwards, until a rate on either side is certain:
those two are the interval of the result.

Certain means two runs at least, since one run near saturation does not see how little it knows, and runs that differ
count for fewer requests (`launch.evaluation.slo.pool`). Who looks several times is wrong more often; so each look takes
its part of what `confidence` leaves (Bonferroni).
"""

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct
from msgspec.structs import replace

from launch.evaluation.intervals import CONFIDENCE, Estimate
from launch.evaluation.slo import Attainment, pool

_Rate = Annotated[float, Meta(gt=0.0)]


class Search(Struct, frozen=True, kw_only=True):
    first_per_s: _Rate = 1.0
    lowest_per_s: _Rate = 0.01
    highest_per_s: _Rate = 10_000.0
    target: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.9
    confidence: Annotated[float, Meta(gt=0.0, lt=1.0)] = CONFIDENCE
    tolerance: _Rate = 0.02  # ends where a rate that passed and one that failed differ by less
    probes_per_rate: Annotated[int, Meta(ge=1)] = 4
    probes: Annotated[int, Meta(ge=1)] = 60  # of all rates


class Probe(Struct, frozen=True, kw_only=True):
    """One run at one rate."""

    rate_per_s: float
    attainment: Attainment
    saturated: bool = False  # no steady state: whatever it attained, a longer run would not
    lagging: bool = False  # the client did not send at this rate: the run says nothing


class Verdict(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    UNDECIDED = "undecided"
    UNMEASURED = "unmeasured"  # the client lagged in every probe


_MIN_RUNS = 2


class Judged(Struct, frozen=True, kw_only=True):
    """A rate, after all its probes."""

    rate_per_s: float
    verdict: Verdict
    certain: bool  # the interval, of two runs or more, does not hold the target
    probes: int
    saturated: bool  # in most of its probes
    attainment: Attainment
    share: Estimate | None


class Ending(StrEnum):
    FOUND = "found"
    ABOVE_HIGHEST = "above_highest"  # even the highest rate passes
    BELOW_LOWEST = "below_lowest"  # not even the lowest passes
    CLIENT_TOO_SLOW = "client_too_slow"  # the next rate is more than the client can send
    OUT_OF_PROBES = "out_of_probes"
    INTERRUPTED = "interrupted"  # there was more to try


REMARKS = {
    Ending.FOUND: "",
    Ending.ABOVE_HIGHEST: "even the highest rate that the search may try held the target: the goodput is this or more",
    Ending.BELOW_LOWEST: "not even the lowest rate that the search may try held the target",
    Ending.CLIENT_TOO_SLOW: "the client could not send at the next rate: the goodput is this or more",
    Ending.OUT_OF_PROBES: "the search ran out of probes before its interval was as narrow as asked",
    Ending.INTERRUPTED: "the search was interrupted: there was more to try",
}
"""What a reader has to know of an ending; nothing where the search found what it looked for."""


class Try(Struct, frozen=True, kw_only=True):
    """Run a probe at this rate, with requests and arrivals that no probe had yet."""

    rate_per_s: float


class Found(Struct, frozen=True, kw_only=True):
    ending: Ending
    goodput_per_s: float | None  # the highest rate tried that holds the target; None: none did
    low_per_s: float | None  # the highest rate up to it that passed with certainty
    high_per_s: float | None  # the lowest rate above it that failed with certainty
    rates: tuple[Judged, ...]  # in ascending order


def next_step(search: Search, probes: Sequence[Probe]) -> Try | Found:
    rates = judged(search, probes)
    again = _again(search, rates)
    wanted = again if again is not None else _next_rate(search, rates)
    if wanted is not None and len(probes) < search.probes and not _unmeasured(search, rates):
        return Try(rate_per_s=wanted)
    return _found(search, rates)


def so_far(search: Search, probes: Sequence[Probe]) -> Found:
    """What is known, whether the search has ended or not."""
    step = next_step(search, probes)
    if isinstance(step, Found):
        return step
    found = _found(search, judged(search, probes))
    return found if found.ending is Ending.FOUND else replace(found, ending=Ending.INTERRUPTED)


def _again(search: Search, rates: Sequence[Judged]) -> float | None:
    """The lowest rate that is not decided and matters: one of the two that the goodput is between, as the shares have
    it now, or once these are close the next one on either side. Others can stay in doubt: the search leaves none
    behind, but probes that it was given may."""
    open_rates = [rate for rate in rates if _is_open(search, rate)]
    passed, failed = _bracket(search, [rate for rate in rates if rate.verdict is not Verdict.UNMEASURED])
    matter = {passed, failed}
    if passed is not None and failed is not None and _is_tight(search, passed, failed):
        low, high = _certain(rates, passed, failed)
        matter.add(min((r.rate_per_s for r in open_rates if failed < r.rate_per_s < (high or math.inf)), default=None))
        matter.add(max((r.rate_per_s for r in open_rates if (low or 0.0) < r.rate_per_s < passed), default=None))
    return next((r.rate_per_s for r in open_rates if r.verdict is Verdict.UNMEASURED or r.rate_per_s in matter), None)


def _next_rate(search: Search, rates: Sequence[Judged]) -> float | None:
    """None: there is nothing to try that the search may try."""
    passed, failed = _bracket(search, _decided(rates))
    if passed is None and failed is None:
        return search.first_per_s
    if failed is None and passed is not None:
        return min(2.0 * passed, search.highest_per_s) if passed < search.highest_per_s else None
    if passed is None and failed is not None:
        return max(failed / 2.0, search.lowest_per_s) if failed > search.lowest_per_s else None
    if passed is None or failed is None:
        raise AssertionError("a bracket has two ends")
    if not _is_tight(search, passed, failed):
        return (passed + failed) / 2.0
    return _outwards(search, rates, passed, failed)


def _outwards(search: Search, rates: Sequence[Judged], passed: float, failed: float) -> float | None:
    """Twice as far from the result each time, until a rate is certain on that side; the nearest that is will do."""
    low, high = _certain(rates, passed, failed)
    unsure = [
        rate.rate_per_s for rate in rates if rate.rate_per_s >= failed and (high is None or rate.rate_per_s < high)
    ]
    if unsure:
        above = min(passed + 2.0 * (max(unsure) - passed), search.highest_per_s)
        if max(unsure) < above < (high or math.inf):
            return above
    unsure = [rate.rate_per_s for rate in rates if rate.rate_per_s <= passed and (low is None or rate.rate_per_s > low)]
    if unsure:
        below = max(failed - 2.0 * (failed - min(unsure)), min(unsure) / 2.0, search.lowest_per_s)
        if (low or 0.0) < below < min(unsure):
            return below
    return None


def judged(search: Search, probes: Sequence[Probe]) -> tuple[Judged, ...]:
    by_rate: dict[float, list[Probe]] = {}
    for probe in probes:
        by_rate.setdefault(probe.rate_per_s, []).append(probe)
    return tuple(_judge(search, rate, by_rate[rate]) for rate in sorted(by_rate))


def _judge(search: Search, rate_per_s: float, probes: Sequence[Probe]) -> Judged:
    measured = [probe for probe in probes if not probe.lagging]
    pooled = pool([probe.attainment for probe in measured])
    share = pooled.share(1.0 - (1.0 - search.confidence) / search.probes_per_rate)
    saturated = 2 * sum(probe.saturated for probe in measured) > len(measured)
    verdict, certain = _verdict(search, share, saturated)
    certain = certain and len(measured) >= min(_MIN_RUNS, search.probes_per_rate)
    if share is not None and not certain and len(probes) < search.probes_per_rate:
        verdict = Verdict.UNDECIDED
    return Judged(
        rate_per_s=rate_per_s,
        verdict=verdict,
        certain=certain,
        probes=len(probes),
        saturated=saturated,
        attainment=pooled,
        share=share,
    )


def _verdict(search: Search, share: Estimate | None, saturated: bool) -> tuple[Verdict, bool]:
    """And whether it is certain."""
    if share is None or share.low is None or share.high is None:
        return Verdict.UNMEASURED, False
    if saturated or share.high < search.target:
        return Verdict.FAILED, True
    if share.low >= search.target:
        return Verdict.PASSED, True
    return Verdict.PASSED if share.value >= search.target else Verdict.FAILED, False


def _is_open(search: Search, rate: Judged) -> bool:
    return rate.verdict in {Verdict.UNDECIDED, Verdict.UNMEASURED} and rate.probes < search.probes_per_rate


def _unmeasured(search: Search, rates: Sequence[Judged]) -> bool:
    return any(rate.verdict is Verdict.UNMEASURED and rate.probes >= search.probes_per_rate for rate in rates)


def _bracket(search: Search, rates: Sequence[Judged]) -> tuple[float | None, float | None]:
    """The highest rate that holds the target and the lowest that does not, once the shares fall with the rate."""
    falling = _falling([_share(rate) for rate in rates], [rate.attainment.effective_total for rate in rates])
    passed = [rate.rate_per_s for rate, share in zip(rates, falling, strict=True) if share >= search.target]
    failed = [rate.rate_per_s for rate, share in zip(rates, falling, strict=True) if share < search.target]
    return max(passed, default=None), min(failed, default=None)


def _decided(rates: Sequence[Judged]) -> list[Judged]:
    return [rate for rate in rates if rate.verdict in {Verdict.PASSED, Verdict.FAILED}]


def _share(rate: Judged) -> float:
    """What a long run would attain: nothing, where there is no steady state."""
    return 0.0 if rate.saturated or rate.share is None else rate.share.value


def _falling(shares: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The closest sequence that never rises: neighbours that do become their mean."""
    pools: list[tuple[float, float, int]] = []  # mean, weight, members
    for share, weight in zip(shares, weights, strict=True):
        pools.append((share, weight, 1))
        while len(pools) > 1 and pools[-2][0] < pools[-1][0]:
            (mean_1, weight_1, size_1), (mean_2, weight_2, size_2) = pools[-2:]
            total = weight_1 + weight_2
            pools[-2:] = [((mean_1 * weight_1 + mean_2 * weight_2) / total, total, size_1 + size_2)]
    return [mean for mean, _, size in pools for _ in range(size)]


def _is_tight(search: Search, passed: float, failed: float) -> bool:
    return failed <= passed * (1.0 + search.tolerance)


def _certain(rates: Sequence[Judged], passed: float | None, failed: float | None) -> tuple[float | None, float | None]:
    sure = [rate for rate in rates if rate.certain]
    low = [
        rate.rate_per_s
        for rate in sure
        if rate.verdict is Verdict.PASSED and passed is not None and rate.rate_per_s <= passed
    ]
    high = [
        rate.rate_per_s
        for rate in sure
        if rate.verdict is Verdict.FAILED and failed is not None and rate.rate_per_s >= failed
    ]
    return max(low, default=None), min(high, default=None)


def _found(search: Search, rates: tuple[Judged, ...]) -> Found:
    passed, failed = _bracket(search, _decided(rates))
    low, high = _certain(rates, passed, failed)
    if passed is not None and failed is not None and _is_tight(search, passed, failed):
        ending = Ending.FOUND
    elif _unmeasured(search, rates):
        ending = Ending.CLIENT_TOO_SLOW
    elif _next_rate(search, rates) is not None or any(rate.verdict is Verdict.UNDECIDED for rate in rates):
        ending = Ending.OUT_OF_PROBES
    else:
        ending = Ending.BELOW_LOWEST if passed is None else Ending.ABOVE_HIGHEST
    return Found(ending=ending, goodput_per_s=passed, low_per_s=low, high_per_s=high, rates=rates)
