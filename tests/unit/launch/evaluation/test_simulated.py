"""Do search and comparison say the truth about servers whose truth is known?

The server of tests/support/fifo.py with Poisson arrivals is M/D/1. Nothing sleeps, every seed is fixed.
"""

import numpy as np
import pytest

from launch.evaluation.arrivals import Poisson
from launch.evaluation.compare import Measure, Scale, Side, Verdict, compare, pairs_of, schedule
from launch.evaluation.goodput import Ending, Found, Probe, Search, Try, next_step
from launch.evaluation.lengths import Fixed, LogNormal
from launch.evaluation.load import dispatch, saturation
from launch.evaluation.measures import measure
from launch.evaluation.results import RequestResult, arriving, steady
from launch.evaluation.slo import Slo, attain
from launch.evaluation.workload import Request, synthetic
from tests.support.fifo import capacity, serve, waits_at_most

SERVICE_S = 0.1
REQUESTS = 2000


def run(rate_per_s: float, seed: int, first: int = 0) -> list[RequestResult]:
    workload = synthetic(Fixed(4), Fixed(2), Poisson(rate_per_s), REQUESTS, seed, first=first)
    return serve(workload.requests, lambda _: SERVICE_S, gap_s=0.01)


def search(wait_s: float, seed: int) -> Found:
    """Each probe leaves out the first tenth, in which the queue is still as empty as it began."""
    slo = Slo(ttft_s=wait_s + SERVICE_S + 1e-9, tpot_s=0.02)
    probes: list[Probe] = []
    while isinstance(step := next_step(Search(first_per_s=1.0), probes), Try):
        results = run(step.rate_per_s, seed, first=REQUESTS * len(probes))
        window = steady(results, warm_up_s=0.1 * REQUESTS / step.rate_per_s, cool_down_s=0.0)
        probes.append(
            Probe(
                rate_per_s=step.rate_per_s,
                attainment=attain(arriving(results, window), slo).every,
                saturated=saturation(results).found,
                lagging=not dispatch(results).honest,
            )
        )
    return step


def test_the_simulation_is_m_d_1() -> None:
    """Waits of runs long enough against Erlang's sum."""
    waits = [
        result.token_s[0] - result.sent_s - SERVICE_S
        for seed in range(5)
        for result in run(7.0, seed)
        if result.index > 200
    ]
    for wait_s in (0.0, 0.1, 0.25, 0.5):
        share = sum(wait <= wait_s + 1e-9 for wait in waits) / len(waits)
        assert share == pytest.approx(waits_at_most(wait_s, 7.0, SERVICE_S), abs=0.02)
    mean_wait = 0.7 * SERVICE_S / (2.0 * (1.0 - 0.7))  # Pollaczek and Khinchine
    assert float(np.mean(waits)) == pytest.approx(mean_wait, rel=0.1)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("wait_s", [0.5, 1.5])
def test_the_search_finds_the_capacity_of_m_d_1_within_5_percent(wait_s: float, seed: int) -> None:
    truth = capacity(0.9, wait_s, SERVICE_S)
    found = search(wait_s, seed)
    assert found.ending is Ending.FOUND
    assert found.goodput_per_s == pytest.approx(truth, rel=0.05)
    assert found.goodput_per_s is not None
    assert found.low_per_s is not None
    assert found.high_per_s is not None
    assert 0.8 * truth < found.low_per_s <= found.goodput_per_s < found.high_per_s < 1.2 * truth


MEASURES = (
    Measure(name="median TTFT"),
    Measure(name="p90 TTFT"),
    Measure(name="output throughput", higher_is_better=True),
    Measure(name="attainment", scale=Scale.DIFFERENCE, higher_is_better=True),
)


def measured(results: list[RequestResult]) -> tuple[float, ...]:
    measures = measure(results, steady(results, warm_up_s=5.0, cool_down_s=5.0))
    share = attain(results, Slo(ttft_s=0.4)).every.share()
    assert share is not None
    assert measures.output_tokens_per_s is not None
    return (
        measures.ttft.percentiles["p50"].value,
        measures.ttft.percentiles["p90"].value,
        measures.output_tokens_per_s,
        share.value,
    )


def compared(seed: int, b_is_slower_by: float, pairs: int = 6) -> dict[str, Verdict]:
    """Two servers of uneven speed, under the same load in both runs of a pair."""
    sides = schedule(pairs)
    values = []
    for number, side in enumerate(sides):
        slowness = 1.0 + b_is_slower_by * (side is Side.B)
        workload = synthetic(
            LogNormal(median_tokens=100.0, sigma=0.7, low=1, high=1000),
            Fixed(2),
            Poisson(6.0),
            200,
            seed=1000 * seed + number // 2,
        )
        noise = np.random.Generator(np.random.Philox(key=[seed, number]))

        def service_s(request: Request, slowness: float = slowness, noise: np.random.Generator = noise) -> float:
            return slowness * (request.prompt_tokens or 0) * 0.0008 * float(noise.lognormal(sigma=0.2))

        values.append(measured(serve(workload.requests, service_s, gap_s=0.01)))
    return {
        name: comparison.verdict
        for name, comparison in compare(
            {measure: pairs_of(sides, [run[position] for run in values]) for position, measure in enumerate(MEASURES)}
        ).items()
    }


def test_a_system_does_not_differ_from_itself_in_19_of_20_comparisons() -> None:
    same = [set(compared(seed, 0.0).values()) == {Verdict.NO_DIFFERENCE} for seed in range(20)]
    assert sum(same) >= 19


def test_a_server_slower_by_30_percent_is_found_slower() -> None:
    for seed in range(3):
        verdicts = compared(seed, 0.3, pairs=10)
        assert verdicts["median TTFT"] is Verdict.A_BETTER
        assert verdicts["attainment"] is Verdict.A_BETTER
        assert verdicts["output throughput"] is Verdict.NO_DIFFERENCE  # both do all that they are sent
