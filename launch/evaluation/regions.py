"""For which prompts, answers and SLOs does each of two systems win?

Pure. Each cell of the grid is a comparison of attainments of its own, in pairs of runs; all cells share the chance of a
wrong winner, so a map of two equal systems stays empty.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean

from msgspec import Struct

from launch.evaluation.compare import Comparison, Measure, Pair, Scale, Side, Verdict, compare
from launch.evaluation.slo import Slo


class Cell(Struct, frozen=True, kw_only=True):
    prompt_tokens: int
    output_tokens: int
    slo: Slo


class Region(Struct, frozen=True, kw_only=True):
    cell: Cell
    winner: Side | None  # None: no difference was shown
    comparison: Comparison
    shares: tuple[float, float] | None  # of requests that met the SLO, of A and B: the mean of all pairs


def regions(
    attainments: Mapping[Cell, Sequence[Pair]], minimal_effect: float = 0.05, error: float = 0.01
) -> tuple[Region, ...]:
    """
    Args:
        attainments: shares of requests that met the cell's SLO, of A and B in neighbouring runs.
        minimal_effect: the smallest difference of shares that makes a winner.
        error: how often a map of two equal systems may name any winner.
    """
    measures = {
        cell: Measure(name=_name(cell), scale=Scale.DIFFERENCE, higher_is_better=True, minimal_effect=minimal_effect)
        for cell in attainments
    }
    compared = compare({measures[cell]: pairs for cell, pairs in attainments.items()}, error)
    return tuple(_region(cell, pairs, compared[measures[cell].name]) for cell, pairs in attainments.items())


def statement(region: Region) -> str:
    """Its verdict with its uncertainty, and whether both systems kept to the SLO or both missed it."""
    if region.shares is None:
        return region.comparison.statement
    a, b = region.shares
    return f"{region.comparison.statement}; A kept it for {100 * a:.3g} % of the requests, B for {100 * b:.3g} %"


def _region(cell: Cell, pairs: Sequence[Pair], comparison: Comparison) -> Region:
    winners = {Verdict.A_BETTER: Side.A, Verdict.B_BETTER: Side.B, Verdict.NO_DIFFERENCE: None}
    shares = (fmean(a for a, _ in pairs), fmean(b for _, b in pairs)) if pairs else None
    return Region(cell=cell, winner=winners[comparison.verdict], comparison=comparison, shares=shares)


def _name(cell: Cell) -> str:
    bounds = {
        "TTFT": cell.slo.ttft_s,
        "TPOT": cell.slo.tpot_s,
        "stall": cell.slo.stall_s,
        "E2E": cell.slo.e2e_s,
    }
    slo = ", ".join(f"{name} {bound * 1000:.6g} ms" for name, bound in bounds.items() if bound is not None)
    return f"{cell.prompt_tokens} -> {cell.output_tokens} tokens, {slo or 'no SLO'}"
