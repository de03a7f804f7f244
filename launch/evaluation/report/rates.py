"""What does more load, or a tighter SLO, do to each system?

Pure. Attainment against rate and against the scale of the SLO, and latency against rate.
"""

from collections.abc import Callable, Sequence
from itertools import chain

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from launch.evaluation.intervals import Estimate
from launch.evaluation.measures import Measures
from launch.evaluation.report import drawing, words
from launch.evaluation.report.drawing import Plot
from launch.evaluation.report.selection import Interest, RatePoint, by_rate, is_steady
from launch.evaluation.slo import Attainment, Attainments, Slo
from launch.evaluation.study import Run, SloScale, Study

TARGET = 0.9
"""Of attainment, where no search says otherwise."""

_Pick = Callable[[Attainments], Attainment]
_Dot = tuple[float, Estimate | None, bool]
"""Rate, latency, whether there was a steady state."""


def attainment_by_rate(study: Study) -> Plot | None:
    """None of a study without an SLO or without a second rate."""
    points = {system.name: by_rate(study, system.name) for system in study.systems}
    rates = {point.rate_per_s for point in chain.from_iterable(points.values()) if point.attainments}
    if len(rates) < 2 or study.slo is None:
        return None
    workers = {system.name: system.workers for system in study.systems}
    per_worker = any(workers.values())
    figure = drawing.new(640 if per_worker else 340)
    panels = list(figure.subplots(2, 2).flat if per_worker else figure.subplots(1, 3))
    picks = _picks(study.slo)
    for axes, (title, pick) in zip((panels[0], *panels[-2:]), picks, strict=True):
        _curves(axes, study, points, pick, dict.fromkeys(points, 1))
        axes.set_title(title)
        axes.set_xlabel("request rate (requests/s)")
    _mark_goodputs(panels[0], study, dict.fromkeys(points, 1))
    if per_worker:
        known = {name: count for name, count in workers.items() if count}
        _curves(panels[1], study, {name: points[name] for name in known}, picks[0][1], known)
        panels[1].set_title(f"{picks[0][0]}, per worker")
        panels[1].set_xlabel("request rate per worker (requests/s)")
        _mark_goodputs(panels[1], study, known)
    handles = drawing.key_of([system.name for system in study.systems])
    handles.append(Line2D([], [], color=drawing.INK, linestyle="--", linewidth=1.2, label="target"))
    if any(not point.steady for point in chain.from_iterable(points.values())):
        handles.append(_open_marker("no steady state"))
    drawing.legend(figure, handles, 6)
    title = "SLO attainment against request rate"
    counted = [run.attainments.every.total for run in _runs(points) if run.attainments is not None]
    goodputs = (
        " Above the curves: the goodput, with the interval from the rate that surely passed to the one that surely"
        " failed; where a side was not found, there is no bar."
        if any(goodput.found.goodput_per_s is not None for goodput in study.goodputs)
        else ""
    )
    return drawing.plot(
        figure,
        name="attainment-rate",
        title=title,
        caption=f"Share of all requests sent that met the SLO ({words.bounds(study.slo)}): the whole of it, its TTFT"
        f" bound alone, and its bounds of the gaps alone. {len(counted)} runs of"
        f" {_from_to(counted)} requests; runs at one rate are pooled. Bands: 95 % Wilson intervals for the effective"
        f" number of requests.{goodputs}",
        note="Further right at the target line is better. Where TTFT alone falls first, prefill is short of room; where"
        " the gaps do, decode is. A failed, rejected or cut-off request has missed everything.",
    )


def attainment_by_scale(study: Study, interest: Interest | None) -> Plot | None:
    """One curve per system: of the run that the other figures show, where it has one."""
    chosen = [scale for system in study.systems if (scale := _chosen_scale(study, system.name, interest)) is not None]
    if not chosen or study.slo is None:
        return None
    figure = drawing.new(340)
    panels = figure.subplots(1, 3, sharey=True)
    names = [system.name for system in study.systems]
    for axes, (title, pick) in zip(panels, _picks(study.slo), strict=True):
        for scale in chosen:
            _curve(axes, names.index(scale.system), [(factor, pick(at), True) for factor, at in scale.points])
        drawing.scale_axis(axes, "x", [factor for scale in chosen for factor, _ in scale.points])
        _percent_axis(axes)
        axes.axvline(1.0, color=drawing.MUTED, linewidth=1.0, linestyle=":")
        axes.axhline(_target(study), color=drawing.INK, linewidth=1.2, linestyle="--")
        axes.set_title(title)
        axes.set_xlabel("scale of the SLO")
    panels[0].set_ylabel("attainment (%)")
    handles = drawing.key_of(names)
    handles.append(Line2D([], [], color=drawing.INK, linestyle="--", linewidth=1.2, label="target"))
    handles.append(Line2D([], [], color=drawing.MUTED, linestyle=":", linewidth=1.0, label="the SLO as asked"))
    drawing.legend(figure, handles, 6)
    title = "SLO attainment against the scale of the SLO"
    runs = {run.run_id: run for run in study.runs}
    loads = "; ".join(
        f"{scale.system}: run {scale.run_id}"
        + (f" at {words.load(run.arrivals, run.rate_per_s)}" if (run := runs.get(scale.run_id)) else "")
        + (f", n = {scale.points[0][1].every.total}" if scale.points else "")
        for scale in chosen
    )
    return drawing.plot(
        figure,
        name="attainment-scale",
        title=title,
        caption=f"Every bound of the SLO ({words.bounds(study.slo)}) is multiplied by the scale, the load stays the"
        f" same. {loads}. Bands: 95 % Wilson intervals for the effective number of requests; all points of a curve come"
        " from the same requests.",
        note="Left of 1 the SLO is tighter than asked. The curve that reaches the target further left could keep a"
        " tighter SLO at this load.",
    )


def latency_by_rate(study: Study) -> Plot | None:
    points = {system.name: by_rate(study, system.name) for system in study.systems}
    if len({point.rate_per_s for point in chain.from_iterable(points.values())}) < 2:
        return None
    figure = drawing.new(600)
    panels = figure.subplots(2, 2, sharex=True, sharey="row")
    all_rates = [point.rate_per_s for point in chain.from_iterable(points.values())]
    for row, (name, measured) in zip(panels, (("TTFT", _ttft), ("TPOT", _tpot)), strict=True):
        found = {percent: _measured(points, percent, measured) for percent in ("p50", "p99")}
        values = [one.value for of in found.values() for dots in of.values() for _, one, _ in dots if one is not None]
        factor, unit = drawing.unit(values)
        for axes, percent in zip(row, found, strict=True):
            _latencies(axes, found[percent], factor)
            drawing.scale_axis(axes, "y", [value * factor for value in values])
            axes.set_ylabel(f"{name} ({unit})")
            drawing.scale_axis(axes, "x", all_rates)
            axes.set_title(f"{percent} {name}")
            if name == "TPOT":
                axes.set_xlabel("request rate (requests/s)")
    handles = drawing.key_of(list(points))
    if any(not is_steady(run) for run in _runs(points)):
        handles.append(_open_marker("no steady state"))
    drawing.legend(figure, handles, 6)
    title = "Latency against request rate"
    counts = [run.measures.ttft.count for run in _runs(points)]
    return drawing.plot(
        figure,
        name="latency-rate",
        title=title,
        caption=f"One point per run of {_from_to(counts)} completed requests; lines join the means per rate. Bars: 95 %"
        " intervals from order statistics. A bar without an upper end: the sample does not bound the percentile from"
        " above, as a p99 of fewer than some 370 requests.",
        note="Without a steady state a latency tells how long the run was; of those points only that they are high is"
        " sure. Requests that did not complete are in no latency.",
    )


def _picks(slo: Slo) -> tuple[tuple[str, _Pick], tuple[str, _Pick], tuple[str, _Pick]]:
    gaps = " and ".join(name for name, bound in (("TPOT", slo.tpot_s), ("stall", slo.stall_s)) if bound is not None)
    return (
        ("Whole SLO", lambda of: of.every),
        ("TTFT bound only" if slo.ttft_s is not None else "TTFT (no bound)", lambda of: of.ttft_only),
        (f"{gaps} bound only" if gaps else "Gaps (no bound)", lambda of: of.gaps_only),
    )


def _curves(
    axes: Axes, study: Study, points: dict[str, tuple[RatePoint, ...]], pick: _Pick, divide_by: dict[str, int]
) -> None:
    names = [system.name for system in study.systems]
    rates = []
    for name, found in points.items():
        curve = [
            (point.rate_per_s / divide_by[name], pick(point.attainments), point.steady)
            for point in found
            if point.attainments is not None
        ]
        rates += [rate for rate, _, _ in curve]
        _curve(axes, names.index(name), curve)
    drawing.scale_axis(axes, "x", rates)
    _percent_axis(axes)
    axes.axhline(_target(study), color=drawing.INK, linewidth=1.2, linestyle="--")
    axes.set_ylabel("attainment (%)")


def _curve(axes: Axes, at: int, points: Sequence[tuple[float, Attainment, bool]]) -> None:
    shares = [(x, share, steady) for x, of, steady in points if (share := of.share()) is not None]
    colour, xs = drawing.colour(at), [x for x, _, _ in shares]
    lows = [share.low if share.low is not None else 0.0 for _, share, _ in shares]
    highs = [share.high if share.high is not None else 1.0 for _, share, _ in shares]
    axes.fill_between(xs, lows, highs, color=colour, alpha=0.18, linewidth=0)
    axes.plot(xs, [share.value for _, share, _ in shares], color=colour)
    for steady in (True, False):
        axes.plot(
            [x for x, _, is_so in shares if is_so is steady],
            [share.value for _, share, is_so in shares if is_so is steady],
            color=colour,
            marker=drawing.marker(at),
            linestyle="",
            markersize=4.5,
            markerfacecolor=colour if steady else "none",
        )


def _mark_goodputs(axes: Axes, study: Study, divide_by: dict[str, int]) -> None:
    """In rows above 100 %, where no curve is."""
    names = [system.name for system in study.systems]
    found = [goodput for goodput in study.goodputs if goodput.found.goodput_per_s is not None]
    row = 1.0
    for goodput in found:
        value, low, high = goodput.found.goodput_per_s, goodput.found.low_per_s, goodput.found.high_per_s
        if value is None or goodput.system not in divide_by:
            continue
        row += 0.11
        at, workers = names.index(goodput.system), divide_by[goodput.system]
        left, right = (value if low is None else low) / workers, (value if high is None else high) / workers
        axes.errorbar(
            [value / workers],
            [row],
            xerr=[[max(value / workers - left, 0.0)], [max(right - value / workers, 0.0)]],
            color=drawing.colour(at),
            marker=drawing.marker(at),
            capsize=4,
            elinewidth=2,
        )
        axes.annotate(
            f"goodput {words.number(value / workers)}",
            (right, row),
            (8, 0),
            textcoords="offset points",
            va="center",
            fontsize=11,
        )
    axes.set_ylim(-0.02, row + 0.07)


def _measured(
    points: dict[str, tuple[RatePoint, ...]], percent: str, pick: Callable[[Measures, str], Estimate | None]
) -> dict[str, list[_Dot]]:
    return {
        system: [(run.rate_per_s or 0.0, pick(run.measures, percent), is_steady(run)) for run in _runs({system: of})]
        for system, of in points.items()
    }


def _latencies(axes: Axes, found: dict[str, list[_Dot]], factor: float) -> None:
    for at, of in enumerate(found.values()):
        colour = drawing.colour(at)
        means: dict[float, list[float]] = {}
        for rate, one, steady in of:
            if one is None:
                continue
            means.setdefault(rate, []).append(one.value * factor)
            low = one.low if one.low is not None else one.value
            high = one.high if one.high is not None else one.value
            axes.errorbar(
                [rate],
                [one.value * factor],
                yerr=[[(one.value - low) * factor], [(high - one.value) * factor]],
                color=colour,
                marker=drawing.marker(at),
                markersize=5,
                markerfacecolor=colour if steady else "none",
                elinewidth=1.2,
                capsize=2,
                linestyle="",
            )
        rates = sorted(means)
        axes.plot(rates, [sum(means[rate]) / len(means[rate]) for rate in rates], color=colour, linewidth=1.2)


def _chosen_scale(study: Study, system: str, interest: Interest | None) -> SloScale | None:
    own = [scale for scale in study.slo_scales if scale.system == system and scale.points]
    shown = {run.run_id for one in interest.shown for run in one.runs} if interest else set()
    return next((scale for scale in own if scale.run_id in shown), own[-1] if own else None)


def _runs(points: dict[str, tuple[RatePoint, ...]]) -> list[Run]:
    return [run for of in points.values() for point in of for run in point.runs]


def _ttft(measures: Measures, percent: str) -> Estimate | None:
    return measures.ttft.percentiles.get(percent)


def _tpot(measures: Measures, percent: str) -> Estimate | None:
    return measures.tpot.percentiles.get(percent)


def _target(study: Study) -> float:
    return study.goodputs[0].search.target if study.goodputs else TARGET


def _percent_axis(axes: Axes) -> None:
    axes.set_ylim(-0.02, 1.04)
    axes.set_yticks([0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0], ["0", "20", "40", "60", "80", "90", "100"])


def _open_marker(label: str) -> Line2D:
    return Line2D([], [], color=drawing.INK, marker="o", markerfacecolor="none", linestyle="", label=label)


def _from_to(counts: Sequence[int]) -> str:
    if not counts:
        return "0"
    return f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,} to {max(counts):,}"
