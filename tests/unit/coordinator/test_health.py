"""Is a cell called healthy exactly when tokens can be expected of it?"""

from collections.abc import Callable

from coordinator.events import DecodeLetGo, DrainAsked, PrefillLetGo, WorkerLost
from runtime.params import FinishReason
from tests.support.configs import coordinator_config
from tests.support.metrics import SimulatedService, ask

STALL_S = coordinator_config().stall_s


def test_a_linked_pair_is_well_however_long_it_idles() -> None:
    cell = SimulatedService()
    cell.clock.time += 100_000.0
    state = cell.service.health()
    assert (state.ok, state.reason, state.accepting) == (True, "", True)


def test_a_cell_without_a_model_is_loading() -> None:
    cell = SimulatedService()
    cell.service.model = None
    state = cell.service.health()
    assert (state.ok, state.accepting) == (False, False)
    assert "loading" in state.reason


def test_workers_without_a_link_make_no_tokens() -> None:
    state = SimulatedService(linked=False).service.health()
    assert (state.ok, state.accepting) == (False, False)
    assert "linked" in state.reason


def test_a_lost_half_of_the_only_pair_is_an_illness() -> None:
    cell = SimulatedService()
    cell.service.handle(WorkerLost("d0", "killed"))
    assert "linked" in cell.service.health().reason


def test_an_aggregated_cell_is_well_with_any_worker_and_ill_without() -> None:
    cell = SimulatedService(aggregated=True)
    assert cell.service.health().ok
    cell.service.handle(WorkerLost("d0", "killed"))
    state = cell.service.health()
    assert (state.ok, state.accepting) == (False, False)
    assert "no worker serves" in state.reason


def test_a_drained_cell_is_well_and_takes_nothing() -> None:
    cell = SimulatedService()
    cell.service.handle(DrainAsked())
    state = cell.service.health()
    assert (state.ok, state.accepting) == (True, False)
    assert "shutting down" in state.reason


def test_a_full_queue_takes_nothing() -> None:
    cell = SimulatedService(total_pages=3)
    for _ in range(1 + cell.CONFIG.requests.max_queued_requests):
        assert cell.service.health().accepting
        cell.submit(ask())
    state = cell.service.health()
    assert (state.ok, state.accepting) == (True, False)
    assert "1000 requests wait" in state.reason


def test_silence_counts_from_the_dispatch_after_an_idle_night() -> None:
    cell = SimulatedService()
    cell.clock.time += 50_000.0
    cell.submit(ask())
    assert cell.service.health().ok
    cell.clock.time += STALL_S
    assert cell.service.health().ok
    cell.clock.time += 0.1
    state = cell.service.health()
    assert (state.ok, state.accepting) == (False, False)
    assert "progress for 120 s" in state.reason


def test_any_word_of_a_worker_about_a_request_is_progress() -> None:
    cell = SimulatedService()
    request_id, _ = cell.submit(ask())
    steps: tuple[Callable[[], None], ...] = (
        lambda: cell.first(request_id, 65),
        lambda: cell.token(request_id, 1, 65),
        lambda: cell.service.handle(PrefillLetGo("p0", request_id, 0, None, None)),
    )
    for step in steps:
        cell.clock.time += STALL_S + 1
        assert not cell.service.health().ok
        step()
        assert cell.service.health().ok
        assert cell.service.progress_age_s == 0.0
    cell.clock.time += STALL_S + 1
    assert not cell.service.health().ok
    cell.service.handle(DecodeLetGo("d0", request_id, 0, None, None))
    assert cell.service.health().ok


def test_a_worker_that_keeps_the_pages_of_an_ended_request_is_waited_for_like_any_other() -> None:
    cell = SimulatedService()
    request_id, front = cell.submit(ask())
    cell.service.cancel(request_id)
    assert front.end is not None
    assert front.end.reason is FinishReason.CANCELLED
    cell.clock.time += STALL_S + 1
    assert not cell.service.health().ok
    cell.let_go(request_id)
    assert cell.service.health().ok
