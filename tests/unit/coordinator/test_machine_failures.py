"""What does the machine do when time runs out, a transfer fails or a worker is lost?"""

from collections.abc import Sequence
from itertools import permutations

import pytest

from coordinator.events import (
    Finish,
    FirstTokenMade,
    PrefillLetGo,
    Stopped,
    Ticked,
    WorkerLost,
)
from coordinator.state import Phase
from runtime.params import FinishReason
from tests.support.cells import LIMITS, Cell, decoding, failed, finished, token, told
from transport.messages.worker import CancelRequest, PeerGone

STOP, LENGTH, CANCELLED = FinishReason.STOP, FinishReason.LENGTH, FinishReason.CANCELLED


# --- deadlines -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [0, 1, 2])
def test_a_deadline_fails_the_request_and_stops_its_workers(tokens: int) -> None:
    cell = Cell()
    request_id = cell.start(timeout_s=5.0)
    if tokens > 0:
        cell.first_token(request_id)
    if tokens > 1:
        cell.token(request_id, 1)
    cell.now += 4.9
    assert cell.feed(Ticked()) == []
    cell.now += 0.1
    actions = cell.feed(Ticked())
    assert failed(cell, request_id).code == "timeout"
    assert sorted(worker for worker, _ in told(actions)) == ["d0", "p0"]
    cell.now += 5.0
    assert cell.feed(Ticked()) == []


def test_a_queued_request_times_out_and_makes_way() -> None:
    cell = Cell(pages=8)
    running = cell.start(prompt_tokens=8, max_tokens=13)  # 5 pages
    first, _ = cell.submit(prompt_tokens=8, max_tokens=13, timeout_s=1.0)
    second, _ = cell.submit(prompt_tokens=4, max_tokens=2)
    assert list(cell.state.queue) == [first, second]
    cell.now += 1.0
    cell.feed(Ticked())
    assert failed(cell, first).code == "timeout"
    assert cell.record(second).phase is Phase.PREFILLING
    assert cell.record(running).phase is Phase.PREFILLING


# --- workers let go --------------------------------------------------------------------------------------------------


def test_a_failed_hand_off_fails_the_request() -> None:
    cell = Cell()
    request_id = cell.start()
    cell.first_token(request_id)
    cell.decode_lets_go(request_id, error="page 0 differs")
    cell.prefill_lets_go(request_id)
    cell.grace_over()
    assert failed(cell, request_id).code == "internal"
    assert "page 0 differs" in failed(cell, request_id).message


@pytest.mark.parametrize("side", ["prefill", "decode"])
def test_a_worker_that_lets_go_too_early_has_failed(side: str) -> None:
    cell = Cell()
    request_id = cell.start()
    if side == "prefill":
        cell.prefill_lets_go(request_id)
    else:
        cell.first_token(request_id)
        cell.decode_lets_go(request_id)
        cell.prefill_lets_go(request_id)
        cell.grace_over()
    assert failed(cell, request_id).code == "internal"


def test_an_error_of_the_prefill_worker_comes_too_late_for_a_request_that_decodes() -> None:
    cell = Cell()
    request_id = cell.start(max_tokens=3)
    cell.first_token(request_id)
    cell.token(request_id, 1)
    assert cell.prefill_lets_go(request_id, error="its endpoint closed") == []
    assert cell.record(request_id).phase is Phase.DECODING


def test_quarantined_pages_do_not_come_back() -> None:
    cell = Cell()
    request_id = cell.start(prompt_tokens=8, max_tokens=4)  # 3 pages
    cell.decode_lets_go(request_id, error="never settled", quarantined=3)
    cell.prefill_lets_go(request_id, error="never settled", quarantined=2)
    assert (cell.worker("d0").free_pages, cell.worker("d0").quarantined_pages) == (61, 3)
    assert cell.worker("p0").quarantined_pages == 2


def test_the_rate_of_a_prefill_worker_is_measured_and_smoothed() -> None:
    cell = Cell()
    for compute_s, rate in ((0.1, 80.0), (0.2, 80.0 + 0.3 * (40.0 - 80.0))):
        request_id = cell.start(prompt_tokens=8)
        cell.first_token(request_id)
        cell.prefill_lets_go(request_id, compute_s=compute_s)
        assert cell.worker("p0").tokens_per_s == pytest.approx(rate)


def test_words_about_requests_that_a_worker_does_not_hold_are_ignored() -> None:
    cell = Cell(prefill=2, decode=2)
    request_id = cell.start()
    assert cell.first_token(request_id, by="p1") == []
    assert cell.first_token(99) == []
    assert cell.token(request_id, 1, by="d1") == []
    assert cell.feed(FirstTokenMade("nobody", request_id, token(0), None)) == []
    assert cell.feed(PrefillLetGo("p1", request_id, 0, None, "what?")) == []
    assert cell.decode_lets_go(request_id, by="d1") == []
    assert cell.record(request_id).phase is Phase.PREFILLING


# --- workers are lost ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", list(permutations(["prefill lets go", "prefill is lost", "decode fails"])))
def test_the_last_pages_may_die_with_a_prefill_worker_that_had_let_go_of_them(order: Sequence[str]) -> None:
    cell = Cell()
    request_id = cell.start(max_tokens=9)
    cell.first_token(request_id)
    for what in order:
        assert not isinstance(cell.last_word(request_id), Finish)
        if what == "prefill lets go":
            cell.prefill_lets_go(request_id)
        elif what == "prefill is lost":
            cell.feed(WorkerLost("p0", "killed"))
        else:
            cell.decode_lets_go(request_id, error="worker p0 is gone")
    assert failed(cell, request_id).code == "worker_lost"
    assert "p0 was lost" in failed(cell, request_id).message
    assert request_id not in cell.state.requests


def test_a_prefill_worker_that_is_lost_behind_its_last_page_was_needed_no_more() -> None:
    cell = Cell()
    request_id = cell.start(max_tokens=9)
    cell.first_token(request_id)
    cell.prefill_lets_go(request_id)
    cell.feed(WorkerLost("p0", "killed"))
    cell.token(request_id, 1)
    cell.decode_lets_go(request_id, error="a row failed")
    assert failed(cell, request_id).code == "internal"


@pytest.mark.parametrize(
    ("lost", "tokens", "fails"), [("p0", 0, True), ("p0", 1, True), ("p0", 2, False), ("d0", 0, True), ("d0", 2, True)]
)
def test_a_lost_worker_fails_the_requests_that_still_need_it(lost: str, tokens: int, *, fails: bool) -> None:
    cell = Cell()
    request_id = cell.start()
    if tokens > 0:
        cell.first_token(request_id)
    if tokens > 1:
        cell.token(request_id, 1)
    other = "d0" if lost == "p0" else "p0"
    actions = told(cell.feed(WorkerLost(lost, "killed")))
    assert actions[0] == (other, PeerGone(worker_id=lost, epoch=1))
    assert ((other, CancelRequest(request_id=request_id)) in actions) == fails
    assert (cell.last_word(request_id) is not None) == fails
    if fails:
        assert failed(cell, request_id).code == "worker_lost"
        assert request_id in cell.state.requests, "the other worker still holds pages of it"
        (cell.decode_lets_go if lost == "p0" else cell.prefill_lets_go)(request_id)
        assert request_id not in cell.state.requests


def test_losing_the_last_holder_ends_a_request_that_only_waited_for_numbers() -> None:
    cell = Cell()
    request_id = cell.start(max_tokens=2)
    cell.first_token(request_id)
    cell.token(request_id, 1, LENGTH)
    cell.prefill_lets_go(request_id)
    cell.feed(WorkerLost("d0", "killed"))
    assert finished(cell, request_id).reason is LENGTH
    assert cell.state.requests == {}


def test_losing_both_workers_ends_a_request_once() -> None:
    cell = Cell()
    request_id = cell.start()
    cell.feed(WorkerLost("d0", "killed"))
    cell.feed(WorkerLost("p0", "killed"))
    assert failed(cell, request_id).code == "worker_lost"
    assert cell.state.requests == {}


def test_a_worker_that_comes_back_is_another_one() -> None:
    cell = Cell()
    request_id = cell.start()
    cell.feed(WorkerLost("d0", "killed"))
    cell.join("d0", epoch=2)
    assert cell.worker("d0").free_pages + cell.state.link_tests[max(cell.state.link_tests)].pages == 64
    assert cell.decode_lets_go(request_id) == [], "a late word of the old one"
    cell.feed(WorkerLost("nobody", "?"))
    with pytest.raises(AssertionError, match="joined twice"):
        cell.join("d0", epoch=3)


# --- the coordinator ends ---------------------------------------------------------------------------------------------


def test_stopping_gives_everybody_a_last_word_and_stops_the_workers() -> None:
    cell = Cell()
    streaming, finishing = decoding(cell), decoding(cell, max_tokens=3)
    cell.token(finishing, 2, LENGTH)
    queued, _ = cell.submit()
    actions = cell.feed(Stopped())
    assert failed(cell, streaming).code == failed(cell, queued).code == "draining"
    assert finished(cell, finishing).reason is LENGTH
    assert {message.request_id for _, message in told(actions) if isinstance(message, CancelRequest)} == {
        streaming,
        queued,
    }


# --- a role without workers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_the_queue_waits_for_a_role_that_has_no_worker_but_not_for_ever(role: str) -> None:
    cell = Cell()
    cell.feed(WorkerLost("p0" if role == "prefill" else "d0", "killed"))
    request_id, _ = cell.submit(timeout_s=1000.0)
    cell.feed(Ticked())
    cell.now += LIMITS.worker_absence_s
    assert cell.feed(Ticked()) == []
    cell.now += 0.1
    cell.feed(Ticked())
    assert failed(cell, request_id).code == "worker_lost"
    assert f"no {role} worker" in failed(cell, request_id).message


def test_a_role_that_is_back_in_time_serves_the_queue() -> None:
    cell = Cell()
    cell.feed(WorkerLost("p0", "killed"))
    request_id, _ = cell.submit(timeout_s=1000.0)
    cell.feed(Ticked())
    cell.now += 0.9 * LIMITS.worker_absence_s
    cell.link(cell.join("p0", epoch=2))
    assert cell.record(request_id).phase is Phase.PREFILLING
    cell.feed(WorkerLost("p0", "killed again"))
    behind, _ = cell.submit(timeout_s=1000.0)
    cell.feed(Ticked())
    cell.now += 0.9 * LIMITS.worker_absence_s
    assert cell.feed(Ticked()) == [], "the clock of an absence starts again"
    assert cell.record(behind).phase is Phase.QUEUED
