"""Is one of two systems better, and how sure is that?

Pure. Runs alternate A B B A A B B A ..., so a machine that warms up or slows down harms both alike; each A is compared
with the B next to it. The verdict rests on Student's t interval of these differences, one number per pair, because the
requests of one run share their luck. A system is called better only if the interval excludes no difference *and* the
difference is worth a word. What is asked about several measures at once shares one chance to be wrong (Bonferroni).
"""

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct

from launch.evaluation.intervals import Estimate, mean


class Side(StrEnum):
    A = "A"
    B = "B"


class Scale(StrEnum):
    RATIO = "ratio"  # of latencies and rates: B / A - 1
    DIFFERENCE = "difference"  # of shares: B - A


class Measure(Struct, frozen=True, kw_only=True):
    """What is compared."""

    name: str
    scale: Scale = Scale.RATIO
    higher_is_better: bool = False
    minimal_effect: Annotated[float, Meta(ge=0.0)] = 0.02  # on the scale; a smaller difference is no difference


class Verdict(StrEnum):
    A_BETTER = "A is better"
    B_BETTER = "B is better"
    NO_DIFFERENCE = "no difference"


class Comparison(Struct, frozen=True, kw_only=True):
    measure: Measure
    verdict: Verdict
    effect: Estimate | None  # on the measure's scale, B against A; None of no pairs
    confidence: float  # of this interval
    pairs: int
    statement: str  # the verdict with its uncertainty, for a report


Pair = tuple[float, float]
"""What A and B measured in neighbouring runs."""


def schedule(pairs: int) -> tuple[Side, ...]:
    """A B, B A, A B, ..."""
    return tuple(side for pair in range(pairs) for side in ((Side.A, Side.B) if pair % 2 == 0 else (Side.B, Side.A)))


def pairs_of(sides: Sequence[Side], values: Sequence[float]) -> tuple[Pair, ...]:
    """The values of a schedule, A first; a pair that was not finished is left out."""
    pairs = []
    for first in range(0, min(len(sides), len(values)) - 1, 2):
        by_side = dict(zip(sides[first : first + 2], values[first : first + 2], strict=True))
        pairs.append((by_side[Side.A], by_side[Side.B]))
    return tuple(pairs)


def compare(measures: Mapping[Measure, Sequence[Pair]], error: float = 0.01) -> dict[str, Comparison]:
    """
    Args:
        error: how often two equal systems may be told apart, by any of the measures.
    """
    if len({measure.name for measure in measures}) < len(measures):
        raise ValueError("two measures have one name")
    confidence = 1.0 - error / max(len(measures), 1)
    return {measure.name: _compare(measure, pairs, confidence) for measure, pairs in measures.items()}


def _compare(measure: Measure, pairs: Sequence[Pair], confidence: float) -> Comparison:
    effect = _effect(measure, pairs, confidence)
    verdict = _verdict(measure, effect)
    return Comparison(
        measure=measure,
        verdict=verdict,
        effect=effect,
        confidence=confidence,
        pairs=len(pairs),
        statement=_statement(measure, verdict, effect, confidence, len(pairs)),
    )


def _effect(measure: Measure, pairs: Sequence[Pair], confidence: float) -> Estimate | None:
    """A ratio's interval is that of its logarithm, in which twice and half are equally far from the same. Pairs of
    equals, as where both systems meet an SLO always, have no spread: an interval of no width would claim too much."""
    if measure.scale is Scale.RATIO and any(a <= 0.0 or b <= 0.0 for a, b in pairs):
        raise ValueError(f"{measure.name}: there is no ratio of what is not positive; compare the difference")
    if pairs and all(a == b for a, b in pairs):
        return Estimate(0.0)
    if measure.scale is Scale.DIFFERENCE:
        return _of_shares(mean([b - a for a, b in pairs], confidence))
    logs = mean([math.log(b / a) for a, b in pairs], confidence)
    if logs is None:
        return None
    return Estimate(
        math.expm1(logs.value),
        math.expm1(logs.low) if logs.low is not None else None,
        math.expm1(min(logs.high, 700.0)) if logs.high is not None else None,  # exp ends at 709
    )


def _of_shares(difference: Estimate | None) -> Estimate | None:
    """Shares differ by 1 at most, which Student does not know."""
    if difference is None or difference.low is None or difference.high is None:
        return difference
    return Estimate(difference.value, max(difference.low, -1.0), min(difference.high, 1.0))


def _verdict(measure: Measure, effect: Estimate | None) -> Verdict:
    if effect is None or effect.low is None or effect.high is None:
        return Verdict.NO_DIFFERENCE
    if effect.low <= 0.0 <= effect.high or abs(effect.value) < measure.minimal_effect:
        return Verdict.NO_DIFFERENCE
    return Verdict.B_BETTER if (effect.value > 0.0) is measure.higher_is_better else Verdict.A_BETTER


def _statement(measure: Measure, verdict: Verdict, effect: Estimate | None, confidence: float, pairs: int) -> str:
    if effect is None or effect.low is None or effect.high is None:
        why = "pair(s) have no interval" if pairs < 2 else "pairs were each the same on both sides: no interval"
        return f"{measure.name}: {verdict.value} shown; {pairs} {why}"
    percent = "%" if measure.scale is Scale.RATIO else " percentage points"
    interval = f"{100 * effect.low:+.3g} to {100 * effect.high:+.3g}{percent}"
    text = (
        f"{measure.name}: {verdict.value}; B against A {100 * effect.value:+.3g}{percent}"
        f" ({100 * confidence:.4g} % interval {interval}, {pairs} pairs)"
    )
    if verdict is Verdict.NO_DIFFERENCE and max(-effect.low, effect.high) > measure.minimal_effect:
        text += (
            f"; differences inside the interval are not ruled out, and {100 * measure.minimal_effect:g}{percent} counts"
        )
    return text
