"""How do two systems differ, measure by measure, and where does each of them win?

Pure. The differences of a duel as intervals around zero, and the map of regions as a grid.
"""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from launch.evaluation.compare import Comparison, Scale, Side, Verdict
from launch.evaluation.regions import Region
from launch.evaluation.report import drawing, words
from launch.evaluation.report.drawing import Plot
from launch.evaluation.slo import Slo
from launch.evaluation.study import Duel, RegionMap, Study

_LIMIT = 400.0
"""Percent; an interval that goes further ends in an arrow."""


def duel_plot(study: Study, duel: Duel, number: int) -> Plot | None:
    """None if nothing was compared."""
    if not duel.comparisons:
        return None
    compared = list(duel.comparisons.values())
    figure = drawing.new(130 + 34 * len(compared))
    axes = figure.subplots()
    reach = _reach(compared)
    for row, comparison in enumerate(compared):
        _interval(axes, study, duel, row, comparison, reach)
    axes.axvline(0.0, color=drawing.INK, linewidth=1.2)
    axes.set_xlim(-reach, reach)
    axes.set_ylim(len(compared) - 0.4, -0.6)
    axes.set_yticks(range(len(compared)), [words.short(comparison.measure.name) for comparison in compared])
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    a, b = words.short(duel.a), words.short(duel.b)
    axes.set_xlabel(f"{b} against {a} (%; of shares: percentage points)")
    for at, side, text in ((0.0, "left", f"← {b} lower"), (1.0, "right", f"{b} higher →")):
        axes.annotate(
            text, (at, 1.0), (0, 4), xycoords="axes fraction", textcoords="offset points", ha=side, color=drawing.MUTED
        )
    drawing.legend(
        figure,
        [
            *_winners(study, duel.a, duel.b),
            Line2D([], [], color=drawing.MUTED, marker="o", markerfacecolor="none", label="no difference shown"),
            Line2D([], [], color=drawing.GRID, linewidth=10, label="too small to count"),
        ],
    )
    name, title = f"duel-{number}", f"{duel.a} against {duel.b}: paired differences"
    confidence = min(comparison.confidence for comparison in compared)
    load = f" at {words.planned(duel.rate_per_s)} requests/s" if duel.rate_per_s is not None else ""
    scales = {comparison.measure.scale for comparison in compared}
    return drawing.plot(
        figure,
        name=name,
        title=title,
        caption=f"{min(comparison.pairs for comparison in compared)} pairs of neighbouring runs{load}, in the order"
        f" A B B A. Mean of the pairs' differences with its {100 * confidence:.4g} % interval (Student's t over pairs"
        + (", of logarithms for ratios" if Scale.RATIO in scales else "")
        + "), so wide that all of them together are wrong about two equal systems in"
        f" {100 * (1.0 - confidence) * len(compared):.2g} of 100 duels.",
        note="An interval that crosses zero shows no difference; how far it reaches is what is not ruled out. Lower is"
        " better for latencies, higher for throughput and attainment: the colour names the winner.",
    )


def region_plot(study: Study, map_: RegionMap) -> Plot | None:
    if not map_.regions:
        return None
    panels = _panels(map_.regions)
    prompts = sorted({region.cell.prompt_tokens for region in map_.regions})
    outputs = sorted({region.cell.output_tokens for region in map_.regions})
    columns = min(len(panels), 2 if len(outputs) > 3 else 3)
    rows = -(-len(panels) // columns)
    figure = drawing.new(90 + rows * (90 + 52 * len(prompts)))
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    colours = {Side.A: _colour(study, map_.a), Side.B: _colour(study, map_.b)}
    largest = max((abs(_effect(region) or 0.0) for region in map_.regions), default=0.0) or 1.0
    for axes, (title, regions) in zip(grid.flat, panels, strict=False):
        for region in regions:
            at = outputs.index(region.cell.output_tokens), prompts.index(region.cell.prompt_tokens)
            _cell(axes, at, region, colours, largest)
        axes.set_title(title, fontsize=11.5)
        axes.set_xlim(0, len(outputs))
        axes.set_ylim(0, len(prompts))
        axes.set_xticks([x + 0.5 for x in range(len(outputs))], [f"{tokens:,}" for tokens in outputs])
        axes.set_yticks([y + 0.5 for y in range(len(prompts))], [f"{tokens:,}" for tokens in prompts])
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.set_xlabel("output (tokens)")
        axes.set_ylabel("prompt (tokens)")
    patches = [
        Patch(facecolor=_colour(study, name), alpha=0.5, label=f"{words.short(name)} better ({side})")
        for side, name in (("A", map_.a), ("B", map_.b))
    ]
    patches.append(Patch(facecolor="none", edgecolor=drawing.MUTED, label="no difference shown"))
    figure.legend(handles=patches, loc="outside upper left", ncols=3)
    title = f"Where {map_.a} and {map_.b} win"
    pairs = [region.comparison.pairs for region in map_.regions]
    confidence = min(region.comparison.confidence for region in map_.regions)
    return drawing.plot(
        figure,
        name="regions",
        title=title,
        caption=f"{map_.how} In each cell: the winner, and attainment of {map_.b} less that of {map_.a} in percentage"
        f" points, from {min(pairs)} pairs of runs; deeper colour is more. Below it: what {map_.a} and {map_.b}"
        f" attained. A cell has a winner where its {100 * confidence:.5g} % interval excludes zero and the difference"
        " counts. The table lists every interval.",
        note="The chance of a wrong winner is shared by all cells, so a map of two equal systems stays without colour.",
    )


def region_slo(slo: Slo) -> str:
    return words.bounds(slo) or "no SLO"


def _panels(regions: Sequence[Region]) -> list[tuple[str, list[Region]]]:
    """One per SLO; where each shape has SLOs of its own, one per place in the shape's list."""
    slos = list(dict.fromkeys(region.cell.slo for region in regions))
    shapes = {(region.cell.prompt_tokens, region.cell.output_tokens) for region in regions}
    if len(regions) == len(slos) * len(shapes) or len(shapes) == 1:
        return [(region_slo(slo), [region for region in regions if region.cell.slo == slo]) for slo in slos]
    places: dict[tuple[int, int], int] = {}
    panels: dict[int, list[Region]] = {}
    for region in regions:
        shape = region.cell.prompt_tokens, region.cell.output_tokens
        places[shape] = places.get(shape, 0) + 1
        panels.setdefault(places[shape], []).append(region)
    return [(f"SLO {place} of each shape", panels[place]) for place in sorted(panels)]


def _cell(axes: Axes, at: tuple[int, int], region: Region, colours: Mapping[Side, str], largest: float) -> None:
    (x, y), effect = at, _effect(region)
    axes.add_patch(
        Rectangle(
            (x + 0.03, y + 0.04),
            0.94,
            0.92,
            facecolor=colours[region.winner] if region.winner is not None else "none",
            edgecolor=drawing.GRID,
            alpha=0.2 + 0.45 * abs(effect or 0.0) / largest if region.winner is not None else None,
        )
    )
    said = words.NONE if effect is None else f"{100.0 * effect:+.0f}"
    text = f"{region.winner.value}  {said}" if region.winner is not None else said
    weight = "bold" if region.winner is not None else "normal"
    middle = 0.5 if region.shares is None else 0.62
    axes.text(x + 0.5, y + middle, text, ha="center", va="center", fontsize=12, fontweight=weight)
    if region.shares is not None:
        kept = " | ".join(f"{100.0 * share:.0f} %" for share in region.shares)
        axes.text(x + 0.5, y + 0.24, kept, ha="center", va="center", fontsize=9.5, color=drawing.MUTED)


def _effect(region: Region) -> float | None:
    return region.comparison.effect.value if region.comparison.effect is not None else None


def _interval(axes: Axes, study: Study, duel: Duel, row: int, comparison: Comparison, reach: float) -> None:
    winner = {Verdict.A_BETTER: duel.a, Verdict.B_BETTER: duel.b, Verdict.NO_DIFFERENCE: None}[comparison.verdict]
    small = 100.0 * comparison.measure.minimal_effect
    axes.barh(row, 2.0 * small, left=-small, height=0.6, color=drawing.GRID, linewidth=0, zorder=0.5)
    effect = comparison.effect
    if effect is None:
        text = "nothing compared"
    else:
        colour = _colour(study, winner) if winner is not None else drawing.MUTED
        low = 100.0 * (effect.low if effect.low is not None else effect.value)
        high = 100.0 * (effect.high if effect.high is not None else effect.value)
        axes.plot([max(low, -reach), min(high, reach)], [row, row], color=colour, linewidth=3, solid_capstyle="butt")
        for end, mark in ((low, "<"), (high, ">")):
            if abs(end) > reach:
                axes.plot([reach if end > 0 else -reach], [row], marker=mark, color=colour, clip_on=False)
        face = colour if winner is not None else "none"
        if abs(effect.value) * 100.0 <= reach:
            axes.plot([100.0 * effect.value], [row], marker="o", markersize=8, color=colour, markerfacecolor=face)
        unit = " %" if comparison.measure.scale is Scale.RATIO else " points"
        text = f"{100.0 * effect.value:+.3g}{unit}"
        text += f" ({low:+.3g} to {high:+.3g})" if effect.low is not None else " (no interval)"
    axes.annotate(
        text, (1.0, row), (10, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center"
    )


def _reach(compared: Sequence[Comparison]) -> float:
    effects = [comparison.effect for comparison in compared if comparison.effect is not None]
    ends = [abs(end) for effect in effects for end in (effect.value, effect.low, effect.high) if end is not None]
    small = max((comparison.measure.minimal_effect for comparison in compared), default=0.0)
    return min(1.1 * 100.0 * max([*ends, 2.0 * small, 0.01]), _LIMIT)


def _winners(study: Study, a: str, b: str) -> list[Line2D]:
    return [
        Line2D([], [], color=_colour(study, name), marker="o", linewidth=3, label=f"{words.short(name)} better")
        for name in (a, b)
    ]


def _colour(study: Study, name: str) -> str:
    names = [system.name for system in study.systems]
    return drawing.colour(names.index(name)) if name in names else drawing.MUTED
