"""Where did the time of the requests go, stage by stage?

Pure. The parts of `launch.evaluation.breakdown`, averaged over the requests of a system, and over those around two
percentiles of E2E. Parts add up along the critical path; what nobody measured is the rest, and it is drawn as well.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Patch
from msgspec import Struct
from msgspec.structs import replace

from launch.evaluation.breakdown import Breakdown, breakdown
from launch.evaluation.report import drawing, words
from launch.evaluation.report.drawing import Plot
from launch.evaluation.report.selection import Interest
from launch.evaluation.results import Outcome

REST = "between the processes"
OTHER = "all other stages"
_GROUPS = (("mean", 0.0, 1.0), ("p50", 0.45, 0.55), ("p99", 0.98, 1.0))
"""Of the requests in order of E2E, from which share to which."""
_LONG = 0.6
"""A stage that takes more of the time than this hides the others; they are drawn once more without it."""
_TOLD_APART = 7
"""Stages with a colour of their own, those that are the largest in any bar; the table has all of them."""


class Bar(Struct, frozen=True, kw_only=True):
    """Means over some requests."""

    system: str
    label: str
    requests: int
    seconds: dict[str, float]  # by stage, in the order of time; the last is `REST`
    places: dict[str, float]  # of `REST`, where it is known
    e2e_s: float


def bars(interest: Interest | None) -> tuple[Bar, ...]:
    """Empty where no server told its durations."""
    found = []
    for shown in interest.shown if interest is not None else ():
        done = [one for one in shown.results if one.outcome is Outcome.COMPLETED]
        whole = sorted((of for one in done if (of := breakdown(one)) is not None), key=lambda of: of.e2e_s)
        for label, low, high in _GROUPS if whole else ():
            first = min(int(low * len(whole)), len(whole) - 1)
            found.append(_bar(shown.system, label, whole[first : max(round(high * len(whole)), first + 1)]))
    return tuple(found)


def stage_breakdown(names: Sequence[str], interest: Interest | None) -> Plot | None:
    """
    Args:
        names: of all systems, in the order of the study.
    """
    found = bars(interest)
    if not found or interest is None:
        return None
    told = len(stages_of(found))
    found = tuple(_merged(bar, _largest(found)) for bar in found)
    stages = stages_of(found)
    longest = max(stages, key=lambda stage: sum(bar.seconds.get(stage, 0.0) for bar in found))
    spent = sum(bar.seconds.get(longest, 0.0) for bar in found)
    zoomed = len(stages) > 2 and spent > _LONG * sum(bar.e2e_s for bar in found)
    height = 30 * len(found) + 60
    figure = drawing.new(60 + 24 * (-(-len(stages) // 4)) + height * (2 if zoomed else 1))
    panels = list(figure.subplots(2 if zoomed else 1, 1, squeeze=False).flat)
    _stack(panels[0], found, stages, names)
    panels[0].set_title("All of E2E")
    if zoomed:
        _stack(panels[1], found, [stage for stage in stages if stage != longest], names, stages)
        panels[1].set_title(f"Without {longest}, which hides the rest")
    handles = [Patch(label=stage, **_look(stage, stages)) for stage in stages]
    figure.legend(handles=handles, loc="outside upper left", ncols=4)
    title = "Where the time goes"
    counts = "; ".join(f"{bar.system}: n = {bar.requests:,}" for bar in found if bar.label == "mean")
    return drawing.plot(
        figure,
        name="stages",
        title=title,
        caption=f"Mean time per stage on a request's critical path. {interest.reason}. {counts}, all completed requests"
        " whose server told its durations. p50: the requests between p45 and p55 of E2E; p99: those above p98. No"
        " interval is shown."
        + (f" The {told} stages of the table in {len(stages)} colours." if told > len(stages) else ""),
        note=f"Bars add up to E2E. Each part was measured by one process on its own clock; “{REST}” is what is left of"
        " the client's E2E: the ways that none of them measures.",
    )


def stages_of(found: Sequence[Bar]) -> list[str]:
    """All stages in the order of time, the rest last."""
    ordered: list[str] = []
    for bar in found:
        at = 0
        for stage in bar.seconds:
            if stage in ordered:
                at = ordered.index(stage) + 1
            else:
                ordered.insert(at, stage)
                at += 1
    return [*(stage for stage in ordered if stage != REST), REST]


def places_of(found: Sequence[Bar]) -> list[str]:
    return list(dict.fromkeys(chain.from_iterable(bar.places for bar in found)))


def _largest(found: Sequence[Bar]) -> set[str]:
    stages = [stage for stage in stages_of(found) if stage != REST]

    def share(stage: str) -> float:
        return max(bar.seconds.get(stage, 0.0) / bar.e2e_s if bar.e2e_s > 0.0 else 0.0 for bar in found)

    there = sorted((stage for stage in stages if share(stage) > 0.0), key=share, reverse=True)
    return set(there if len(there) <= _TOLD_APART + 1 else there[:_TOLD_APART])


def _merged(bar: Bar, kept: set[str]) -> Bar:
    """Stages that are not `kept` become one, next to the rest."""
    seconds = {stage: spent for stage, spent in bar.seconds.items() if stage in kept}
    other = sum(spent for stage, spent in bar.seconds.items() if stage not in kept and stage != REST)
    if other > 0.0:
        seconds[OTHER] = other
    seconds[REST] = bar.seconds[REST]
    return replace(bar, seconds=seconds)


def _bar(system: str, label: str, requests: Sequence[Breakdown]) -> Bar:
    sums: dict[str, float] = {}
    for part in chain.from_iterable(one.parts for one in requests):
        sums[part.stage] = sums.get(part.stage, 0.0) + part.seconds
    seconds = {stage: total / len(requests) for stage, total in sums.items()}
    seconds[REST] = sum(one.residual_s for one in requests) / len(requests)
    places: dict[str, float] = {}
    for part in chain.from_iterable(one.places for one in requests):
        places[part.stage] = places.get(part.stage, 0.0) + part.seconds / len(requests)
    return Bar(
        system=system,
        label=label,
        requests=len(requests),
        seconds=seconds,
        places=places,
        e2e_s=sum(one.e2e_s for one in requests) / len(requests),
    )


def _stack(
    axes: Axes, found: Sequence[Bar], stages: Sequence[str], names: Sequence[str], all_stages: Sequence[str] = ()
) -> None:
    totals = [sum(max(bar.seconds.get(stage, 0.0), 0.0) for stage in stages) for bar in found]
    factor, unit = drawing.unit(totals)
    rows = [at + 0.5 * names.index(bar.system) for at, bar in enumerate(found)]  # a gap between systems
    for row, bar, total in zip(rows, found, totals, strict=True):
        left = 0.0
        for stage in stages:
            width = (
                max(bar.seconds.get(stage, 0.0), 0.0) * factor
            )  # clocks of two processes may leave less than nothing
            axes.barh(row, width, left=left, height=0.78, linewidth=0, **_look(stage, all_stages or stages))
            left += width
        axes.annotate(words.duration(total), (left, row), (4, 0), textcoords="offset points", va="center", fontsize=11)
    axes.set_yticks(rows, [f"{words.short(bar.system)}, {bar.label}" for bar in found])
    axes.set_ylim(rows[-1] + 0.6, -0.6)
    axes.set_xlim(0.0, 1.1 * max(totals, default=1.0) * factor or 1.0)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(f"time ({unit})")


def _look(stage: str, stages: Sequence[str]) -> dict[str, Any]:
    if stage == REST:
        return {"facecolor": "none", "hatch": "////", "edgecolor": drawing.MUTED}
    if stage == OTHER:
        return {"facecolor": drawing.MUTED}
    return {"facecolor": drawing.STAGE_COLOURS[list(stages).index(stage) % len(drawing.STAGE_COLOURS)]}
