"""What happened to the single requests of a run?

Pure. Distributions of the latencies, and a timeline of one run.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from launch.evaluation.measures import Latencies, latencies
from launch.evaluation.report import drawing, words
from launch.evaluation.report.drawing import Plot
from launch.evaluation.report.selection import Interest
from launch.evaluation.results import Outcome, RequestResult
from launch.evaluation.slo import Slo, judge
from launch.evaluation.study import Run, Study

_STEPS = 400
"""Of a distribution; more cannot be seen."""
_LINES = 90
"""Requests drawn one by one."""
_DOTS = 1500

_Pick = Callable[[Latencies], Iterable[float | None]]
_PANELS: tuple[tuple[str, _Pick, Callable[[Slo], float | None]], ...] = (
    ("TTFT", lambda one: (one.ttft_s,), lambda slo: slo.ttft_s),
    ("TPOT", lambda one: (one.tpot_s,), lambda slo: slo.tpot_s),
    ("E2E", lambda one: (one.e2e_s,), lambda slo: slo.e2e_s),
    ("Hand-off gap", lambda one: (one.handoff_gap_s,), lambda slo: slo.stall_s),
    ("Longest stall", lambda one: (one.longest_stall_s,), lambda slo: slo.stall_s),
    ("ITL, all gaps", lambda one: one.gaps_s, lambda slo: slo.stall_s),
)


def distributions(study: Study, interest: Interest | None) -> Plot | None:
    """None if no request completed."""
    if interest is None:
        return None
    seen = {
        one.system: [latencies(result) for result in one.results if result.outcome is Outcome.COMPLETED]
        for one in interest.shown
    }
    if not any(one.ttft_s is not None for of in seen.values() for one in of):
        return None
    figure = drawing.new(560)
    panels = figure.subplots(2, 3, sharey=True)
    names = [system.name for system in study.systems]
    for axes, (title, pick, bound) in zip(panels.flat, _PANELS, strict=True):
        values = {
            names.index(system): np.sort([value for one in of for value in pick(one) if value is not None])
            for system, of in seen.items()
        }
        unit = _cdf(axes, values, bound(study.slo) if study.slo is not None else None)
        axes.set_title(title)
        axes.set_xlabel(f"{title.partition(',')[0]} ({unit})")
    for row in panels:
        row[0].set_ylabel("share of requests (%)")
        row[2].tick_params(labelleft=False)
    panels[1][2].set_ylabel("of gaps (%)")
    handles = drawing.key_of(names)
    if study.slo is not None and words.bounds(study.slo):
        handles.append(Line2D([], [], color=drawing.INK, linestyle="--", linewidth=1.2, label="bound of the SLO"))
    drawing.legend(figure, handles, 6)
    title = "Distributions of the latencies"
    counts = "; ".join(
        f"{one.system}: n = {len(seen[one.system]):,} completed of {len(one.results):,}"
        + (f" in {len(one.runs)} runs" if len(one.runs) > 1 else "")
        for one in interest.shown
    )
    return drawing.plot(
        figure,
        name="distributions",
        title=title,
        caption=f"Cumulative shares. {interest.reason}. {counts}. ITL: share of gaps, all requests together. The dashed"
        " line is the bound of the SLO; the last three panels have that of every gap.",
        note="Further left is faster; the height at which a curve crosses the bound is the share that kept it. The top"
        " end of a curve is its tail. Mind logarithmic axes.",
    )


def timeline(study: Study, interest: Interest | None) -> tuple[Plot, ...]:
    """One of each system, of its first run under the load of interest."""
    if interest is None:
        return ()
    plots = []
    names = [system.name for system in study.systems]
    for shown in interest.shown:
        run = shown.runs[0]
        results = shown.results if len(shown.runs) == 1 else _of_first(shown.results)
        if results:
            plots.append(_timeline(study, run, results, names.index(shown.system)))
    return tuple(plots)


def _of_first(results: Sequence[RequestResult]) -> tuple[RequestResult, ...]:
    """Of runs one behind the other, the first: arrivals start again with each."""
    end = next((at for at in range(1, len(results)) if results[at].arrival_s < results[at - 1].arrival_s), len(results))
    return tuple(results[:end])


def _cdf(axes: Axes, values: dict[int, np.ndarray[tuple[int], np.dtype[np.float64]]], bound: float | None) -> str:
    """Returns the unit."""
    everything = [float(value) for of in values.values() if of.size for value in (*of[of > 0][:1].tolist(), of[-1])]
    if not any(value > 0.0 for value in everything):
        axes.text(0.5, 0.5, "nothing" if not everything else "all 0", transform=axes.transAxes, ha="center")
        return "ms"
    limits = [*everything, *([bound] if bound is not None and bound < 3.0 * max(everything) else [])]
    factor, unit = drawing.unit(limits)
    log = drawing.scale_axis(axes, "x", [value * factor for value in limits])
    left = axes.get_xlim()[0]
    for at, of in values.items():
        if of.size == 0:
            continue
        ranks = np.unique(np.linspace(0, of.size - 1, min(of.size, _STEPS)).round().astype(int))
        xs = np.maximum(np.concatenate(([of[0]], of[ranks])) * factor, left)
        axes.step(
            xs,
            np.concatenate(([0.0], (ranks + 1) / of.size)),
            where="post",
            color=drawing.colour(at),
            marker=drawing.marker(at),
            markersize=4.5,
            markevery=(len(xs) // (8 + at), max(len(xs) // 5, 1)),
        )
    if bound is not None and bound in limits:
        axes.axvline(bound * factor, color=drawing.INK, linestyle="--", linewidth=1.2)
    axes.set_ylim(0.0, 1.02)
    axes.set_yticks([0.0, 0.25, 0.5, 0.75, 0.9, 1.0], ["0", "25", "50", "75", "90", "100"])
    return f"{unit}, log" if log else unit


def _timeline(study: Study, run: Run, results: Sequence[RequestResult], at: int) -> Plot:
    ordered = sorted(results, key=lambda result: (result.arrival_s, result.index))
    figure = drawing.new(640)
    lines, dots, under_way = figure.subplots(3, 1, height_ratios=[1.3, 1.0, 0.8])
    drawn = _around_the_slowest(ordered)
    _lifelines(lines, drawn, at)
    skipped = _ttft_dots(dots, ordered, study.slo, at)
    _under_way(under_way, ordered, at)
    dots.sharex(under_way)
    dots.tick_params(labelbottom=False)
    if len(drawn) < len(ordered):
        for axes in (dots, under_way):
            axes.axvspan(*lines.get_xlim(), color=drawing.MUTED, alpha=0.13, linewidth=0, zorder=0)
    else:
        lines.sharex(under_way)
    name, title = f"timeline-{at}", f"Timeline of {run.system}, run {run.run_id}"
    missed = sum(not judge(result, study.slo).every for result in ordered) if study.slo is not None else None
    return drawing.plot(
        figure,
        name=name,
        title=title,
        caption=f"{words.load(run.arrivals, run.rate_per_s)}; {len(ordered):,} requests of the window"
        + (f", of which {missed:,} missed the SLO" if missed is not None else "")
        + (
            ". Top: all of them"
            if len(drawn) == len(ordered)
            else f". Top: {len(drawn)} neighbours, around the one that waited longest (shaded below)"
        )
        + ", one line each, from arrival to first token (light), then to last token (dark). Middle: TTFT by arrival"
        + (f"; {skipped:,} of those that met the SLO are left out" if skipped else "")
        + ". Bottom: requests under way, waiting for their first token or streaming.",
        note="A TTFT that rises from left to right has no steady state. Waves are bursts of arrivals: what arrives"
        " together misses together.",
    )


def _around_the_slowest(ordered: Sequence[RequestResult]) -> Sequence[RequestResult]:
    if len(ordered) <= _LINES:
        return ordered
    waits = [latencies(result).ttft_s or 0.0 for result in ordered]
    first = min(max(int(np.argmax(waits)) - 2 * _LINES // 3, 0), len(ordered) - _LINES)
    return ordered[first : first + _LINES]


def _lifelines(axes: Axes, results: Sequence[RequestResult], at: int) -> None:
    colour = drawing.colour(at)
    rows = range(len(results))
    first = [result.token_s[0] if result.token_s else result.end_s for result in results]
    axes.hlines(rows, [result.arrival_s for result in results], first, color=colour, alpha=0.4, linewidth=2.2)
    axes.hlines(
        [row for row in rows if results[row].token_s],
        [result.token_s[0] for result in results if result.token_s],
        [result.token_s[-1] for result in results if result.token_s],
        color=colour,
        linewidth=2.2,
    )
    broken = [row for row in rows if results[row].outcome is not Outcome.COMPLETED]
    axes.plot([results[row].end_s for row in broken], broken, linestyle="", marker="x", color=drawing.INK, markersize=5)
    axes.set_ylim(len(results) - 0.3, -0.7)
    axes.set_yticks([])
    axes.set_ylabel("requests, by arrival")
    axes.set_xlabel("seconds since the start of the run")
    axes.grid(visible=False, axis="y")
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=colour, alpha=0.4, linewidth=4, label="arrival to first token"),
        Line2D([], [], color=colour, linewidth=4, label="first to last token"),
    ]
    if broken:
        handles.append(Line2D([], [], color=drawing.INK, marker="x", linestyle="", label="did not complete"))
    _legend_above(axes, handles)


def _ttft_dots(axes: Axes, ordered: Sequence[RequestResult], slo: Slo | None, at: int) -> int:
    """Returns how many dots were left out."""
    seen = [(result, result.token_s[0] - result.sent_s) for result in ordered if result.token_s]
    met = [one for one in seen if slo is None or judge(one[0], slo).every]
    missed = [one for one in seen if slo is not None and not judge(one[0], slo).every]
    kept = met[:: max(-(-len(met) // _DOTS), 1)]
    factor, unit = drawing.unit([wait for _, wait in seen])
    waits = [wait * factor for _, wait in seen]
    label = "met the SLO" if slo is not None else "request"
    axes.plot(
        [result.arrival_s for result, _ in kept],
        [wait * factor for _, wait in kept],
        linestyle="",
        marker="o",
        markersize=3.5,
        color=drawing.colour(at),
        label=label,
    )
    if missed:
        axes.plot(
            [result.arrival_s for result, _ in missed],
            [wait * factor for _, wait in missed],
            linestyle="",
            marker="x",
            markersize=5.5,
            color=drawing.INK,
            label="missed it",
        )
    bound = slo.ttft_s * factor if slo is not None and slo.ttft_s is not None else None
    log = drawing.scale_axis(axes, "y", [*waits, *([bound] if bound is not None else [])])
    none = [result.arrival_s for result in ordered if not result.token_s]
    if none:
        top = axes.get_ylim()[1]
        axes.plot(
            none, [top] * len(none), linestyle="", marker="v", color=drawing.INK, clip_on=False, label="no token at all"
        )
    if bound is not None:
        axes.axhline(bound, color=drawing.INK, linestyle="--", linewidth=1.2, label="TTFT bound")
    axes.set_ylabel(f"TTFT ({unit}{', log' if log else ''})")
    _legend_above(axes)
    return len(met) - len(kept)


def _under_way(axes: Axes, ordered: Sequence[RequestResult], at: int) -> None:
    changes: list[tuple[float, int, int]] = []  # when, change of those that wait, change of those that stream
    for result in ordered:
        first = result.token_s[0] if result.token_s else result.end_s
        last = max(result.end_s, first)
        changes += [(result.arrival_s, 1, 0), (first, -1, 1), (last, 0, -1)]
    changes.sort()
    times = np.array([time for time, _, _ in changes])
    waiting = np.cumsum([change for _, change, _ in changes])
    streaming = np.cumsum([change for _, _, change in changes])
    kept = np.unique(np.linspace(0, times.size - 1, min(times.size, 1200)).round().astype(int))
    colour = drawing.colour(at)
    both = waiting + streaming
    axes.fill_between(
        times[kept], both[kept], streaming[kept], step="post", color=colour, alpha=0.4, linewidth=0, label="waiting"
    )
    axes.fill_between(times[kept], streaming[kept], step="post", color=colour, linewidth=0, label="streaming")
    axes.set_ylim(0, max(1.08 * float(both.max(initial=1)), 1.0))
    axes.set_ylabel("under way")
    axes.set_xlabel("seconds since the start of the run")
    _legend_above(axes)


def _legend_above(axes: Axes, handles: Sequence[Line2D | Patch] | None = None) -> None:
    place: dict[str, Any] = {
        "loc": "lower left",
        "bbox_to_anchor": (0.0, 1.0),
        "ncols": 4,
        "fontsize": 11,
        "handlelength": 1.4,
    }
    if handles is None:
        axes.legend(**place)
    else:
        axes.legend(handles=list(handles), **place)
