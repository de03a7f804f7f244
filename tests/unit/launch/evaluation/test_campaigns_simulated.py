"""Do campaigns say the truth about systems whose truth is known?

Cells are simulated whole, on a clock that nobody waits for (tests/support/timed_cell.py): the machine of the
coordinator, workers, and the fake engine's cost, with chance between runs and between forwards. The capacity of a
server is known exactly where it is M/D/1 (tests/support/fifo.py). Every seed is fixed.
"""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from launch.evaluation.arrivals import Arrivals, ClosedLoop, Poisson
from launch.evaluation.campaigns.duel import DuelOptions, duel
from launch.evaluation.campaigns.search import GoodputOptions, goodput
from launch.evaluation.campaigns.session import Session, Size
from launch.evaluation.campaigns.shapes import RegionOptions, Shape, map_regions
from launch.evaluation.compare import Side, Verdict
from launch.evaluation.goodput import Ending, Search
from launch.evaluation.lengths import Fixed, Uniform
from launch.evaluation.results import RequestResult
from launch.evaluation.slo import Slo
from launch.evaluation.study import Duel, RegionMap
from launch.evaluation.workload import Workload
from tests.support.fifo import capacity, serve
from tests.support.loads import Drawn, Server, SimulatedLoads
from tests.support.timed_cell import FakeCell, serve_cell

DISAGGREGATED = FakeCell(prefill=1, decode=1)
AGGREGATED = FakeCell(prefill=0, decode=2)
SLO = Slo(ttft_s=0.15, tpot_s=0.01)
SERVICE_S = 0.1


def slower(cell: FakeCell, factor: float) -> FakeCell:
    return replace(cell, step_s=factor * cell.step_s, token_s=factor * cell.token_s)


def simulated(cell: FakeCell, seed: int) -> Server:
    def server(workload: Workload, arrivals: Arrivals, number: int) -> list[RequestResult]:
        noise = np.random.Generator(np.random.Philox(key=[seed, number]))
        concurrency = arrivals.concurrency if isinstance(arrivals, ClosedLoop) else None
        return serve_cell(workload.requests, cell, noise, concurrency)

    return server


def duelled(a: FakeCell, b: FakeCell, seed: int, *, pairs: int = 6, rate_per_s: float = 15.0) -> Duel:
    loads = SimulatedLoads({"A": simulated(a, seed), "B": simulated(b, seed)})
    options = DuelOptions(arrivals=Poisson(rate_per_s), requests=60, pairs=pairs, slo=SLO)
    return asyncio.run(duel(Session(loads.run_load), Drawn(Uniform(32, 96), Uniform(4, 10), seed), "A", "B", options))


def test_a_cell_does_not_differ_from_itself_in_19_of_20_duels() -> None:
    found = [
        {one.verdict for one in duelled(DISAGGREGATED, DISAGGREGATED, seed).comparisons.values()} for seed in range(20)
    ]
    assert sum(verdicts == {Verdict.NO_DIFFERENCE} for verdicts in found) >= 19


@pytest.mark.parametrize("seed", range(3))
def test_a_cell_slower_by_20_percent_is_found_slower(seed: int) -> None:
    fought = duelled(DISAGGREGATED, slower(DISAGGREGATED, 1.2), seed, pairs=10, rate_per_s=8.0)
    for measure in ("TTFT p50", "TPOT p50", "E2E p50"):
        comparison = fought.comparisons[measure]
        assert comparison.verdict is Verdict.A_BETTER
        assert comparison.effect is not None
        assert comparison.effect.value > 0.1
    assert "A is better at " in fought.verdict
    assert "B is better at " not in fought.verdict
    assert fought.comparisons["completed"].verdict is Verdict.NO_DIFFERENCE


def test_each_of_two_ways_to_serve_is_better_at_its_own() -> None:
    """One worker for each stage against two that do both: prompts queue longer, and streams do not wait for them."""
    fought = duelled(DISAGGREGATED, AGGREGATED, seed=0, pairs=10)
    assert fought.comparisons["longest stall p99"].verdict is Verdict.A_BETTER
    assert fought.comparisons["TTFT p50"].verdict is Verdict.B_BETTER
    stall = fought.verdict.index("A is better at")
    assert stall < fought.verdict.index("longest stall p99") < fought.verdict.index("B is better at")


@pytest.mark.parametrize("wait_s", [0.5, 1.5])
def test_the_search_finds_the_capacity_of_m_d_1_within_5_percent(wait_s: float) -> None:
    def server(workload: Workload, _arrivals: Arrivals, _number: int) -> list[RequestResult]:
        return serve(workload.requests, lambda _: SERVICE_S, gap_s=0.01)

    truth = capacity(0.9, wait_s, SERVICE_S)
    slo = Slo(ttft_s=wait_s + SERVICE_S + 1e-9, tpot_s=0.02)
    options = GoodputOptions(slo=slo, search=Search(first_per_s=truth / 3), size=Size(seconds=200.0, at_least=2000))
    loads = SimulatedLoads({"M/D/1": server})
    (found,) = asyncio.run(goodput(Session(loads.run_load), Drawn(Fixed(4), Fixed(2)), ["M/D/1"], options))
    assert found.found.ending is Ending.FOUND
    assert found.found.goodput_per_s == pytest.approx(truth, rel=0.05)


def mapped(a: FakeCell, b: FakeCell, shapes: tuple[Shape, ...], seed: int, pairs: int = 5) -> RegionMap:
    loads = SimulatedLoads({"A": simulated(a, seed), "B": simulated(b, seed)})
    options = RegionOptions(shapes=shapes, pairs=pairs, size=Size(seconds=2.0, at_least=50))
    found = asyncio.run(
        map_regions(
            Session(loads.run_load),
            lambda shape: Drawn(Fixed(shape.prompt_tokens), Fixed(shape.output_tokens), seed),
            "A",
            "B",
            options,
        )
    )
    assert found is not None
    return found


LONG_PROMPTS = Shape(prompt_tokens=200, output_tokens=2)
LONG_ANSWERS = Shape(prompt_tokens=8, output_tokens=40)


@pytest.mark.parametrize("seed", range(2))
def test_the_map_of_two_equal_cells_is_empty(seed: int) -> None:
    found = mapped(DISAGGREGATED, DISAGGREGATED, (LONG_PROMPTS, LONG_ANSWERS), seed)
    assert len(found.regions) == 6
    assert {region.winner for region in found.regions} == {None}


def test_slow_prompts_with_fast_tokens_win_where_answers_are_long() -> None:
    """A: two workers' worth of time per prompt token, half of it per step."""
    slow_prompts = replace(DISAGGREGATED, step_s=0.002, token_s=0.001)
    found = mapped(slow_prompts, DISAGGREGATED, (LONG_PROMPTS, LONG_ANSWERS), seed=0, pairs=8)
    winners: dict[int, set[Side | None]] = {}
    for region in found.regions:
        winners.setdefault(region.cell.prompt_tokens, set()).add(region.winner)
    assert Side.B in winners[200]
    assert Side.A not in winners[200]
    assert Side.A in winners[8]
    assert Side.B not in winners[8]
    assert "0.7 of the higher throughput with 4 requests under way" in found.how
