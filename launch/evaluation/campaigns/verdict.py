"""How is a duel told in one sentence?

Pure. Who is better at what, by how much and how sure that is; where no difference was shown, what is not ruled out.
"""

from collections.abc import Iterable, Mapping

from msgspec import Struct

from launch.evaluation.compare import Comparison, Scale, Verdict
from launch.evaluation.intervals import Estimate


class Circumstances(Struct, frozen=True, kw_only=True):
    """What the numbers of a duel rest on."""

    load: str
    pairs: int  # that count
    lagging: int  # pairs that do not, because the client lagged
    saturated: dict[str, int]  # by system, in how many of its runs that count


def verdict(a: str, b: str, comparisons: Mapping[str, Comparison], rests_on: Circumstances) -> str:
    if rests_on.pairs < 2:
        return f"No verdict at {rests_on.load}: {_pairs(rests_on)}, and fewer than two have no uncertainty."
    known = [one for one in comparisons.values() if one.effect is not None and one.effect.low is not None]
    better = {
        name: [one for one in known if one.verdict is verdict]
        for name, verdict in ((a, Verdict.A_BETTER), (b, Verdict.B_BETTER))
    }
    alike = [one for one in known if one.verdict is Verdict.NO_DIFFERENCE]
    parts = [f"{name} is better at {_listed(map(_effect, wins))}" for name, wins in better.items() if wins]
    if alike:
        parts.append(f"no difference was shown in {_listed(map(_not_excluded, alike))}")
    parts += [f"{name} was over-saturated in {times} runs" for name, times in rests_on.saturated.items() if times]
    confidence = max((one.confidence for one in known), default=0.0)
    return (
        f"At {rests_on.load}, {b} against {a}: {'; '.join(parts) or 'nothing could be compared'}"
        f" ({100 * confidence:.4g} % intervals; {_pairs(rests_on)})."
    )


def _effect(one: Comparison) -> str:
    return f"{one.measure.name} ({_percent(one, _of(one).value)}, {_interval(one)})"


def _not_excluded(one: Comparison) -> str:
    """Differences too small to count need no word."""
    effect = _of(one)
    low, high = effect.low or 0.0, effect.high or 0.0
    if max(-low, high) <= one.measure.minimal_effect:
        return f"{one.measure.name} (none above {_unsigned(one, one.measure.minimal_effect)})"
    return f"{one.measure.name} ({_interval(one)} is not ruled out)"


def _of(one: Comparison) -> Estimate:
    if one.effect is None:
        raise AssertionError("only known effects are told")
    return one.effect


def _interval(one: Comparison) -> str:
    effect = _of(one)
    return f"{100 * (effect.low or 0.0):+.3g} to {_percent(one, effect.high or 0.0)}"


def _percent(one: Comparison, value: float) -> str:
    return f"{100 * value:+.3g}{_unit(one)}"


def _unsigned(one: Comparison, value: float) -> str:
    return f"{100 * value:.3g}{_unit(one)}"


def _unit(one: Comparison) -> str:
    return " %" if one.measure.scale is Scale.RATIO else " points"


def _pairs(rests_on: Circumstances) -> str:
    text = f"{rests_on.pairs} pair{'s' if rests_on.pairs != 1 else ''} of runs"
    return f"{text}, {rests_on.lagging} left out because the client lagged" if rests_on.lagging else text


def _listed(parts: Iterable[str]) -> str:
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last
