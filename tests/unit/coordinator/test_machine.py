"""What does the machine do for each event, in each phase of a request?"""

import pytest

from coordinator.admission import AdmissionLimits
from coordinator.events import (
    CancelAsked,
    DrainAsked,
    Emit,
    Finish,
    StopStringFound,
    Ticked,
    TokensMade,
    WorkerLost,
)
from coordinator.machine import FINISH_GRACE_S
from coordinator.state import Phase
from runtime.params import FinishReason
from runtime.stages import DecodeStages, PrefillStages
from tests.support.cells import Cell, decoding, failed, finished, peer, token, told
from transport.messages.worker import Admit, CancelRequest, Prefill, TokenStep

STOP, LENGTH, CANCELLED = FinishReason.STOP, FinishReason.LENGTH, FinishReason.CANCELLED


# --- the straight path -----------------------------------------------------------------------------------------------


def test_admit_and_prefill_leave_in_one_step_under_one_transfer() -> None:
    cell = Cell()
    request_id, actions = cell.submit(prompt_tokens=8, max_tokens=4)
    (decode, admit), (prefill, order) = told(actions)
    assert (decode, prefill) == ("d0", "p0")
    assert isinstance(admit, Admit)
    assert isinstance(order, Prefill)
    assert admit.transfer_id == order.transfer_id
    assert (admit.peer, order.peer) == (peer("p0"), peer("d0"))
    assert admit.prompt == order.prompt == tuple(range(8))
    assert admit.request_id == order.request_id == request_id
    assert admit.pages == 3  # 8 + 4 - 1 tokens on pages of 4
    assert cell.worker("d0").free_pages == 64 - 3


def test_token_1_goes_out_at_once_and_the_rest_follows_in_order() -> None:
    cell = Cell()
    request_id = cell.start(max_tokens=3)
    assert cell.first_token(request_id) == [Emit(request_id, 0, (token(0),))]
    assert cell.record(request_id).phase is Phase.HANDING_OFF
    assert cell.token(request_id, 1) == [Emit(request_id, 1, (token(1),))]
    assert cell.record(request_id).phase is Phase.DECODING
    assert cell.token(request_id, 2, LENGTH) == [Emit(request_id, 2, (token(2),), LENGTH)]
    assert cell.record(request_id).phase is Phase.FINISHING


def test_the_last_word_waits_for_the_numbers_of_both_workers() -> None:
    cell = Cell()
    request_id = cell.start(max_tokens=2)
    cell.now = 101.0
    cell.first_token(request_id)
    cell.now = 101.5
    cell.token(request_id, 1, LENGTH)
    assert cell.prefill_lets_go(request_id, compute_s=0.25) == []
    (end,) = cell.decode_lets_go(request_id)
    assert isinstance(end, Finish)
    assert end.reason is LENGTH
    ledger = end.ledger
    assert (ledger.queue_s, ledger.first_token_s, ledger.handoff_gap_s, ledger.total_s) == (0.0, 1.0, 0.5, 1.5)
    assert ledger.prefill == PrefillStages(queue_s=0.0, compute_s=0.25, chunks=1)
    assert ledger.decode == DecodeStages(steps=3)
    assert (ledger.prefill_worker, ledger.decode_worker) == ("p0", "d0")
    assert cell.state.requests == {}
    assert cell.worker("d0").free_pages == 64


def test_the_last_word_does_not_wait_for_ever_for_the_numbers() -> None:
    cell = Cell()
    request_id = cell.start(max_tokens=2)
    cell.first_token(request_id)
    cell.token(request_id, 1, LENGTH)
    cell.now += FINISH_GRACE_S
    assert cell.feed(Ticked()) == []
    cell.now += 0.01
    (end,) = cell.feed(Ticked())
    assert isinstance(end, Finish)
    assert end.ledger.decode is None
    assert cell.worker("d0").free_pages < 64, "the credits come back with the pages, not with the last word"
    cell.prefill_lets_go(request_id)
    assert cell.decode_lets_go(request_id) == []
    assert cell.worker("d0").free_pages == 64


def test_one_token_needs_no_decode_worker() -> None:
    cell = Cell(prefill=1, decode=0)
    request_id, actions = cell.submit(max_tokens=1)
    ((prefill, order),) = told(actions)
    assert prefill == "p0"
    assert isinstance(order, Prefill)
    assert order.peer is None
    cell.first_token(request_id, LENGTH)
    cell.prefill_lets_go(request_id)
    assert finished(cell, request_id).reason is LENGTH
    assert finished(cell, request_id).ledger.decode_worker == ""


def test_a_request_that_ends_with_token_1_gets_its_decode_pages_back() -> None:
    cell = Cell()
    request_id = cell.start(max_tokens=9)
    cell.first_token(request_id, STOP)
    assert cell.record(request_id).phase is Phase.FINISHING
    cell.decode_lets_go(request_id, error="the sender ended the transfer")
    cell.prefill_lets_go(request_id)
    assert finished(cell, request_id).reason is STOP
    assert cell.worker("d0").free_pages == 64


def test_one_step_of_the_decode_worker_serves_the_whole_batch() -> None:
    cell = Cell()
    first, second = cell.start(), cell.start()
    for request_id in (first, second):
        cell.first_token(request_id)
    steps = (TokenStep(second, 1, token(1)), TokenStep(first, 1, token(1)))
    assert cell.feed(TokensMade("d0", steps)) == [Emit(second, 1, (token(1),)), Emit(first, 1, (token(1),))]


# --- decode overtakes prefill ----------------------------------------------------------------------------------------


def test_tokens_that_overtake_token_1_wait_for_it() -> None:
    cell = Cell()
    request_id = cell.start(max_tokens=4)
    assert cell.token(request_id, 1) == []
    assert cell.token(request_id, 2) == []
    assert cell.first_token(request_id) == [Emit(request_id, index, (token(index),)) for index in range(3)]
    assert cell.record(request_id).phase is Phase.DECODING


def test_an_answer_that_was_complete_before_token_1_came_is_not_lost() -> None:
    """The decode worker may even have let go; only token 1 is still on its way, over another connection."""
    cell = Cell()
    request_id = cell.start(max_tokens=3)
    cell.token(request_id, 1)
    cell.token(request_id, 2, LENGTH)
    assert cell.decode_lets_go(request_id) == []
    cell.first_token(request_id)
    cell.prefill_lets_go(request_id)
    assert cell.emitted(request_id) == [1000, 1001, 1002]
    assert finished(cell, request_id).reason is LENGTH


def test_an_answer_that_ends_with_token_1_is_not_failed_by_the_hand_off_that_ended_for_it() -> None:
    """The prefill worker ends the transfer because of the last token; the decode worker's word of it overtakes that."""
    cell = Cell()
    request_id = cell.start(max_tokens=9)
    assert cell.decode_lets_go(request_id, error="the sender ended the transfer") == []
    cell.first_token(request_id, STOP)
    cell.prefill_lets_go(request_id)
    assert finished(cell, request_id).reason is STOP


def test_a_hand_off_that_failed_before_token_1_fails_the_request_when_token_1_is_not_the_last() -> None:
    cell = Cell()
    request_id = cell.start(max_tokens=9)
    cell.decode_lets_go(request_id, error="page 0 differs")
    cell.first_token(request_id)
    cell.grace_over()
    assert "worker d0 could not go on: page 0 differs" in failed(cell, request_id).message


def test_a_hand_off_that_failed_before_token_1_is_the_reason_when_no_token_comes() -> None:
    cell = Cell()
    request_id = cell.start(max_tokens=9)
    cell.decode_lets_go(request_id, error="the link broke")
    cell.prefill_lets_go(request_id, error="the peer closed")
    assert "the link broke" in failed(cell, request_id).message


@pytest.mark.parametrize("side", ["prefill", "decode"])
def test_a_hand_off_that_failed_because_the_other_worker_died_says_so(side: str) -> None:
    """UCX tells the survivor of the death before anybody tells the coordinator."""
    cell = Cell()
    request_id = cell.start(max_tokens=9)
    cell.first_token(request_id)
    if side == "prefill":
        cell.prefill_lets_go(request_id, error="connection reset")
        assert cell.last_word(request_id) is None
        cell.feed(WorkerLost("d0", "killed"))
    else:
        cell.decode_lets_go(request_id, error="connection reset")
        assert cell.last_word(request_id) is None
        cell.feed(WorkerLost("p0", "killed"))
    assert failed(cell, request_id).code == "worker_lost"


def test_a_hand_off_that_failed_on_both_sides_fails_the_request() -> None:
    cell = Cell()
    request_id = cell.start(max_tokens=9)
    cell.first_token(request_id)
    cell.prefill_lets_go(request_id, error="the link broke")
    cell.decode_lets_go(request_id, error="the peer gave up")
    cell.grace_over()
    assert failed(cell, request_id).code == "internal"
    assert "the link broke" in failed(cell, request_id).message
    other = cell.start(max_tokens=9)
    cell.first_token(other)
    cell.decode_lets_go(other, error="page 0 differs")
    cell.prefill_lets_go(other)
    cell.grace_over()
    assert "page 0 differs" in failed(cell, other).message


def test_a_hand_off_that_failed_does_not_wait_long_for_the_other_side() -> None:
    cell = Cell()
    request_id = cell.start(max_tokens=9)
    cell.first_token(request_id)
    cell.prefill_lets_go(request_id, error="the link broke")
    cell.now += FINISH_GRACE_S
    cell.feed(Ticked())
    assert cell.last_word(request_id) is None
    cell.now += 0.1
    assert ("d0", CancelRequest(request_id=request_id)) in told(cell.feed(Ticked()))
    assert failed(cell, request_id).code == "internal"


def test_token_1_lost_with_its_worker_fails_an_answer_that_decode_has_completed() -> None:
    cell = Cell()
    request_id = cell.start(max_tokens=2)
    cell.token(request_id, 1, LENGTH)
    cell.decode_lets_go(request_id)
    cell.feed(WorkerLost("p0", "killed"))
    assert failed(cell, request_id).code == "worker_lost"
    assert cell.emitted(request_id) == []


def test_a_gap_in_the_tokens_ends_the_process() -> None:
    cell = Cell()
    request_id = cell.start()
    cell.first_token(request_id)
    with pytest.raises(AssertionError, match="token 2, but 1 is due"):
        cell.machine.handle(TokensMade("d0", (TokenStep(request_id, 2, token(2)),)), cell.now)


# --- cancel and stop strings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", [CancelAsked, StopStringFound])
def test_the_client_ends_a_request_in_every_phase(event: type[CancelAsked] | type[StopStringFound]) -> None:
    reason = CANCELLED if event is CancelAsked else STOP
    stop = {("p0", "prefill"), ("d0", "decode")}
    for tokens in range(3):
        cell = Cell()
        request_id = cell.start(max_tokens=4)
        if tokens > 0:
            cell.first_token(request_id)
        if tokens > 1:
            cell.token(request_id, 1)
        actions = cell.feed(event(request_id))
        waits = event is StopStringFound and tokens > 0  # for the numbers of the workers
        assert (cell.last_word(request_id) is None) == waits
        assert {worker for worker, _ in told(actions)} == {worker for worker, _ in stop}
        assert all(message == CancelRequest(request_id=request_id) for _, message in told(actions))
        assert cell.feed(event(request_id)) == [], "asking twice changes nothing"
        assert cell.worker("d0").free_pages < 64, "cancelling stops compute, not the transfer"
        cell.prefill_lets_go(request_id)
        cell.decode_lets_go(request_id)
        assert finished(cell, request_id).reason is reason
        assert (finished(cell, request_id).ledger.decode is not None) == waits
        assert cell.state.requests == {}
        assert cell.worker("d0").free_pages == 64


def test_a_stop_string_waits_for_numbers_and_not_for_long() -> None:
    cell = Cell()
    request_id = decoding(cell)
    stopped_at = cell.now
    cell.now += 0.25
    cell.feed(StopStringFound(request_id))
    assert cell.token(request_id, 2) == [], "its text is complete"
    cell.now = stopped_at + FINISH_GRACE_S + 0.01
    cell.feed(Ticked())
    ledger = finished(cell, request_id).ledger
    assert (finished(cell, request_id).reason, ledger.decode, ledger.total_s) == (STOP, None, 0.0)
    cell.decode_lets_go(request_id)
    assert cell.state.requests == {}


def test_cancelling_a_queued_request_takes_it_out_of_the_queue() -> None:
    cell = Cell(prefill=0, decode=0)
    request_id, _ = cell.submit()
    behind, _ = cell.submit()
    (end,) = cell.feed(CancelAsked(request_id))
    assert isinstance(end, Finish)
    assert list(cell.state.queue) == [behind]
    assert request_id not in cell.state.requests


def test_tokens_of_a_cancelled_request_reach_nobody() -> None:
    cell = Cell()
    request_id = cell.start()
    cell.feed(CancelAsked(request_id))
    assert cell.first_token(request_id) == []
    assert cell.token(request_id, 1) == []
    assert cell.worker("p0").backlog_tokens == 0


def test_cancel_after_the_last_token_changes_nothing_but_a_stop_string_is_the_reason() -> None:
    for event, reason in ((CancelAsked, LENGTH), (StopStringFound, STOP)):
        cell = Cell()
        request_id = cell.start(max_tokens=2)
        cell.first_token(request_id)
        cell.token(request_id, 1, LENGTH)
        assert cell.feed(event(request_id)) == []
        cell.prefill_lets_go(request_id)
        cell.decode_lets_go(request_id)
        assert finished(cell, request_id).reason is reason


def test_cancelling_an_unknown_request_does_nothing() -> None:
    assert Cell().feed(CancelAsked(77)) == []


# --- admission, order and drain --------------------------------------------------------------------------------------


def test_first_come_first_served_even_if_a_later_one_would_fit() -> None:
    cell = Cell(pages=8)
    running = cell.start(prompt_tokens=8, max_tokens=13)  # 5 of 8 pages
    large, _ = cell.submit(prompt_tokens=8, max_tokens=13)
    small, _ = cell.submit(prompt_tokens=4, max_tokens=2)  # 2 pages would be there
    assert list(cell.state.queue) == [large, small]
    cell.feed(CancelAsked(running))
    cell.prefill_lets_go(running)
    assert list(cell.state.queue) == [large, small]
    started = told(cell.decode_lets_go(running))
    assert [message.request_id for _, message in started if isinstance(message, Admit)] == [large, small]


def test_what_cannot_be_served_is_refused_at_once() -> None:
    cell = Cell(pages=8, limits=AdmissionLimits(1, 1000, 1000))
    never, _ = cell.submit(prompt_tokens=8, max_tokens=100)
    assert failed(cell, never).code == "invalid_request"
    cell.start(prompt_tokens=16, max_tokens=17)  # all pages
    cell.submit()
    busy, _ = cell.submit()
    assert failed(cell, busy).code == "overloaded"
    cell.feed(DrainAsked())
    late, _ = cell.submit()
    assert failed(cell, late).code == "draining"


def test_a_request_that_quarantine_has_made_impossible_does_not_hold_up_the_others() -> None:
    cell = Cell(pages=8)
    running = cell.start(prompt_tokens=8, max_tokens=13)  # 5 pages
    impossible, _ = cell.submit(prompt_tokens=8, max_tokens=25)  # all 8
    behind, _ = cell.submit(prompt_tokens=4, max_tokens=2)
    cell.prefill_lets_go(running, error="it is stuck")
    cell.decode_lets_go(running, error="never settled", quarantined=5)
    assert failed(cell, impossible).code == "overloaded"
    assert cell.record(behind).phase is Phase.PREFILLING


def test_a_draining_cell_finishes_what_it_has_accepted() -> None:
    cell = Cell(pages=8)
    running = cell.start(prompt_tokens=16, max_tokens=17)
    queued, _ = cell.submit()
    cell.feed(DrainAsked())
    cell.first_token(running, STOP)
    cell.prefill_lets_go(running)
    cell.decode_lets_go(running)
    assert cell.record(queued).phase is Phase.PREFILLING
