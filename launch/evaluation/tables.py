"""How are the runs of a study, and what follows from them, told on a terminal?

Of a run its latencies with their intervals, then what the server did, then, in bold, why one should not believe it.
"""

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from launch.evaluation.goodput import REMARKS
from launch.evaluation.intervals import Estimate
from launch.evaluation.measures import PERCENTS, Summary
from launch.evaluation.regions import statement
from launch.evaluation.report import words
from launch.evaluation.slo import Attainment, Slo
from launch.evaluation.study import Goodput, Run, Study

_WIDE = 150


def print_run(console: Console, run: Run, slo: Slo | None) -> None:
    console.print(f"{run.system}: {load_words(run)}", style="italic", highlight=False, markup=False, soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("ms")
    for title in ("mean", *(f"p{percent}" for percent in PERCENTS), "max", "n"):
        table.add_column(title, justify="right")
    measures = run.measures
    wide = console.width >= _WIDE
    for name, summary in (
        ("TTFT", measures.ttft),
        ("TPOT", measures.tpot),
        ("ITL", measures.itl),
        ("hand-off gap", measures.handoff_gap),
        ("longest stall", measures.longest_stall),
        ("E2E", measures.e2e),
    ):
        table.add_row(name, *_cells(summary, wide=wide))
    console.print(table)
    for line in lines(run, slo):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for complaint in complaints(run):
        console.print(complaint, style="bold red", highlight=False, markup=False, soft_wrap=True)


def print_runs(console: Console, runs: Sequence[Run]) -> None:
    """One line per run, for campaigns."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    for title in ("run", "req/s", "TTFT ms\np50/p99", "TPOT ms\np50/p99", "tok/s", "attainment", ""):
        table.add_column(title, justify="left" if title in ("run", "") else "right", no_wrap=title != "")
    for run in runs:
        measures = run.measures
        tokens = measures.output_tokens_per_s
        table.add_row(
            run.run_id,
            f"{run.rate_per_s:.4g}" if run.rate_per_s is not None else "closed",
            _p50_p99(measures.ttft),
            _p50_p99(measures.tpot),
            f"{tokens:.4g}" if tokens is not None else "-",
            _share(run.attainments.every) if run.attainments is not None else "-",
            "[bold red]" + ", ".join(complaint.partition(",")[0].lower() for complaint in complaints(run)),
        )
    console.print(table)


def findings(study: Study) -> Iterator[str]:
    """What follows from the runs of its campaigns."""
    yield from (duel.verdict for duel in study.duels)
    yield from map(_goodput, study.goodputs)
    if study.region_map is not None:
        yield f"regions: A = {study.region_map.a}, B = {study.region_map.b}"
        yield from map(statement, study.region_map.regions)


def load_words(run: Run) -> str:
    tokens = f"{run.output_tokens:.4g} tokens each"
    if run.prompt_tokens is not None:
        tokens = f"{run.prompt_tokens:.4g} -> {tokens}"
    rate = f"{run.rate_per_s:.4g} requests/s" if run.rate_per_s is not None else "closed loop"
    return f"{run.requests} requests, {tokens}, {rate}, {run.seconds:.1f} s"


def lines(run: Run, slo: Slo | None) -> Iterator[str]:
    measures = run.measures
    rates = {
        "requests/s": measures.completed_per_s,
        "output tokens/s": measures.output_tokens_per_s,
        "prompt tokens/s": measures.prompt_tokens_per_s,
    }
    yield "throughput: " + ", ".join(f"{rate:.4g} {unit}" for unit, rate in rates.items() if rate is not None)
    yield "outcomes: " + (", ".join(f"{n} {outcome}" for outcome, n in measures.outcomes.items() if n) or "none")
    if run.attainments is not None and slo is not None:
        shares = {
            "whole SLO": run.attainments.every,
            "TTFT": run.attainments.ttft_only,
            "gaps": run.attainments.gaps_only,
        }
        told = ", ".join(f"{name} {_share(attainment)}" for name, attainment in shares.items())
        yield f"attainment ({slo_words(slo)}): {told}"
    if run.dispatch is not None and run.dispatch.lag_p99_s is not None and run.dispatch.lag_max_s is not None:
        yield f"dispatch lag: p99 {run.dispatch.lag_p99_s * 1e3:.3g} ms, max {run.dispatch.lag_max_s * 1e3:.3g} ms"


def complaints(run: Run) -> Iterator[str]:
    if run.dispatch is not None and run.dispatch.complaint is not None:
        yield f"THE CLIENT LAGS, ITS NUMBERS LIE: {run.dispatch.complaint}"
    if run.saturation is not None and run.saturation.complaint is not None:
        yield f"OVER-SATURATED, latencies measure how long the run was: {run.saturation.complaint}"


def slo_words(slo: Slo) -> str:
    bounds = {"TTFT": slo.ttft_s, "TPOT": slo.tpot_s, "stall": slo.stall_s, "E2E": slo.e2e_s}
    return ", ".join(f"{name} {bound * 1e3:.6g} ms" for name, bound in bounds.items() if bound is not None)


def _goodput(one: Goodput) -> str:
    found, remark = one.found, REMARKS[one.found.ending]
    rate = "none"
    if found.goodput_per_s is not None:
        rate = f"{found.goodput_per_s:.4g} {words.interval(found.low_per_s, found.high_per_s)}".rstrip() + " requests/s"
    return f"goodput of {one.system}: {rate}" + (f"; {remark}" if remark else "")


def _cells(summary: Summary, *, wide: bool) -> list[str]:
    if summary.count == 0:
        return ["-"] * (2 + len(PERCENTS)) + ["0"]
    estimates = [summary.mean, *(summary.percentiles.get(f"p{percent}") for percent in PERCENTS)]
    largest = f"{summary.max_s * 1e3:.4g}" if summary.max_s is not None else "-"
    return [*(_estimate(estimate, wide=wide) for estimate in estimates), largest, str(summary.count)]


def _estimate(estimate: Estimate | None, *, wide: bool) -> str:
    if estimate is None:
        return "-"
    text = f"{estimate.value * 1e3:.4g}"
    if not wide or (estimate.low is None and estimate.high is None):
        return text
    low, high = (f"{side * 1e3:.4g}" if side is not None else "?" for side in (estimate.low, estimate.high))
    return f"{text} ({low}-{high})"


def _p50_p99(summary: Summary) -> str:
    found = [summary.percentiles.get(percent) for percent in ("p50", "p99")]
    return "/".join(f"{estimate.value * 1e3:.4g}" if estimate is not None else "-" for estimate in found)


def _share(attainment: Attainment) -> str:
    share = attainment.share()
    if share is None:
        return "of no requests"
    return f"{100 * share.value:.3g} % ({100 * (share.low or 0.0):.3g}-{100 * (share.high or 1.0):.3g})"
