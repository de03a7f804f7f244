"""Is a load that was not what it should be, or more than the server bears, told from one that was fine?"""

import pytest

from launch.evaluation.arrivals import Poisson
from launch.evaluation.lengths import Fixed
from launch.evaluation.load import dispatch, saturation
from launch.evaluation.results import RequestResult
from launch.evaluation.workload import synthetic
from tests.support.fifo import serve

SERVICE_S = 0.1


def run(rate_per_s: float, seed: int, count: int = 1000, room: float = 1e9) -> list[RequestResult]:
    workload = synthetic(Fixed(4), Fixed(2), Poisson(rate_per_s), count, seed)
    return serve(workload.requests, lambda _: SERVICE_S, gap_s=0.01, room=room)


def test_lag_by_hand() -> None:
    results = [
        RequestResult(
            index=index, arrival_s=float(index), sent_s=index + lag, token_s=(index + 1.0,), end_s=index + 1.0
        )
        for index, lag in enumerate([0.0, 0.002, 0.004, 0.001, 0.003])
    ]
    seen = dispatch(results)
    assert seen.lag_p50_s == pytest.approx(0.002)
    assert seen.lag_p99_s == pytest.approx(0.00396)
    assert seen.lag_max_s == pytest.approx(0.004)
    assert seen.planned_per_s == 1.0
    assert seen.sent_per_s == pytest.approx(4 / 4.003)
    assert seen.honest


def test_a_client_that_falls_behind_says_so() -> None:
    workload = synthetic(Fixed(4), Fixed(2), Poisson(5.0), 200, seed=1)
    behind = serve(workload.requests, lambda _: SERVICE_S, lag_s=lambda request: 0.1 * request.arrival_s)
    complaint = dispatch(behind).complaint
    assert complaint is not None
    assert complaint.startswith("the client sent")


def test_a_client_that_stutters_says_so() -> None:
    workload = synthetic(Fixed(4), Fixed(2), Poisson(5.0), 200, seed=1)
    stutter = serve(workload.requests, lambda _: SERVICE_S, lag_s=lambda request: 0.2 * (request.index % 20 == 0))
    complaint = dispatch(stutter).complaint
    assert complaint is not None
    assert "in no latency" in complaint


def test_a_run_of_nothing_is_no_lie() -> None:
    assert dispatch([]).honest
    assert not saturation([]).found
    assert saturation([]).ttft_growth is None


@pytest.mark.parametrize("overload", [1.2, 1.5, 4.0])
def test_overload_is_found_in_every_run(overload: float) -> None:
    for seed in range(10):
        found = saturation(run(overload / SERVICE_S, seed))
        assert found.complaint is not None
        assert found.ttft_growth is not None
        assert found.ttft_growth.value == pytest.approx(overload - 1.0, abs=0.1 * overload)


def test_overload_is_rarely_found_where_there_is_none() -> None:
    """Two one-sided looks at 2.5 % each in 20 runs per load: one is expected at most, and four happen once in 500."""
    for load in (0.5, 0.9):
        assert sum(saturation(run(load / SERVICE_S, seed)).found for seed in range(20)) <= 3


def test_a_server_that_turns_away_what_it_cannot_do_is_in_a_steady_state() -> None:
    results = run(2.0 / SERVICE_S, seed=1, room=0.5)
    assert not saturation(results).found
    assert sum(result.outcome == "rejected" for result in results) > 400


def test_a_backlog_is_found_where_no_token_ever_comes() -> None:
    stuck = [RequestResult(index=index, arrival_s=float(index), sent_s=float(index), end_s=1e6) for index in range(100)]
    found = saturation(stuck)
    assert found.complaint == "of 100 requests that arrive, 100 are left over"
    assert found.ttft_growth is None
