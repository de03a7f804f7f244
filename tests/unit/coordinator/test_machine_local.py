"""What does the machine do with a request whose decode worker computes the prompt itself?"""

from dataclasses import replace

import pytest

from coordinator.events import CancelAsked, Emit, Finish, StopStringFound, Ticked, TokensMade, WorkerLost
from coordinator.local_prefill import LocalPrefill
from coordinator.state import Phase
from runtime.params import FinishReason
from runtime.stages import DecodeStages, PrefillStages
from tests.support.cells import AGGREGATED, LIMITS, Cell, failed, finished, token, told
from transport.messages.worker import Admit, CancelRequest, Prefill, Serve, TokenStep

STOP, LENGTH, CANCELLED = FinishReason.STOP, FinishReason.LENGTH, FinishReason.CANCELLED
SHORT = replace(LIMITS, local=LocalPrefill(prompt_tokens=8, backlog_tokens=12))


def aggregated(workers: int = 1, pages: int = 64) -> Cell:
    return Cell(prefill=0, decode=workers, pages=pages, limits=AGGREGATED)


# --- the straight path -----------------------------------------------------------------------------------------------


def test_one_order_goes_to_one_worker() -> None:
    cell = aggregated()
    request_id, actions = cell.submit(prompt_tokens=8, max_tokens=4)
    ((worker, order),) = told(actions)
    assert worker == "d0"
    assert isinstance(order, Serve)
    assert (order.request_id, order.prompt, order.pages) == (request_id, tuple(range(8)), 3)
    assert cell.worker("d0").free_pages == 64 - 3
    assert cell.worker("d0").backlog_tokens == 8


def test_every_token_comes_from_the_decode_worker_and_nothing_is_handed_off() -> None:
    cell = aggregated()
    request_id = cell.start(max_tokens=3)
    cell.now = 101.0
    assert cell.token(request_id, 0) == [Emit(request_id, 0, (token(0),))]
    assert cell.record(request_id).phase is Phase.DECODING
    assert cell.worker("d0").backlog_tokens == 0
    assert cell.token(request_id, 1) == [Emit(request_id, 1, (token(1),))]
    cell.now = 102.0
    cell.token(request_id, 2, LENGTH)
    assert cell.record(request_id).phase is Phase.FINISHING
    (end,) = cell.decode_lets_go(request_id)
    assert isinstance(end, Finish)
    ledger = end.ledger
    assert (ledger.first_token_s, ledger.handoff_gap_s, ledger.total_s) == (1.0, 0.0, 2.0)
    assert ledger.prefill == PrefillStages(queue_s=0.0, compute_s=0.5, chunks=2)
    assert ledger.decode == DecodeStages(steps=3)
    assert (ledger.prefill_worker, ledger.decode_worker) == ("d0", "d0")
    assert cell.state.requests == {}
    assert cell.worker("d0").free_pages == 64


def test_one_token_is_served_by_the_only_worker_there_is() -> None:
    cell = aggregated()
    request_id, actions = cell.submit(prompt_tokens=8, max_tokens=1)
    ((_, order),) = told(actions)
    assert isinstance(order, Serve)
    assert order.pages == 2
    cell.token(request_id, 0, LENGTH)
    cell.decode_lets_go(request_id)
    assert finished(cell, request_id).reason is LENGTH


def test_prompts_are_spread_by_what_each_worker_owes() -> None:
    cell = aggregated(workers=2, pages=1000)
    first, second = cell.start(prompt_tokens=600), cell.start(prompt_tokens=600)
    assert (cell.record(first).decode_worker, cell.record(second).decode_worker) == ("d0", "d1")
    cell.token(second, 0, by="d1")
    assert cell.record(cell.start()).decode_worker == "d1"


# --- beside prefill workers ------------------------------------------------------------------------------------------


def test_short_prompts_stay_long_ones_are_handed_off() -> None:
    cell = Cell(limits=SHORT)
    short, actions = cell.submit(prompt_tokens=8)
    assert [type(message) for _, message in told(actions)] == [Serve]
    long, actions = cell.submit(prompt_tokens=9)
    assert [type(message) for _, message in told(actions)] == [Admit, Prefill]
    busy, actions = cell.submit(prompt_tokens=4)
    assert [type(message) for _, message in told(actions)] == [Serve], "it owes 8 tokens, the limit is 12"
    _, actions = cell.submit(prompt_tokens=4)
    assert [type(message) for _, message in told(actions)] == [Admit, Prefill], "it owes 12 tokens"
    cell.first_token(long)
    steps = tuple(
        TokenStep(request_id, index, token(index)) for request_id, index in ((short, 0), (busy, 0), (long, 1))
    )
    cell.feed(TokensMade("d0", steps))
    assert {cell.record(one).phase for one in (short, busy, long)} == {Phase.DECODING}
    assert cell.worker("d0").backlog_tokens == 0


def test_the_loss_of_the_prefill_worker_is_nothing_to_a_local_request() -> None:
    cell = Cell(limits=SHORT)
    short = cell.start(prompt_tokens=8)
    long = cell.start(prompt_tokens=9)
    cell.feed(WorkerLost("p0", "killed"))
    assert failed(cell, long).code == "worker_lost"
    assert cell.record(short).phase is Phase.PREFILLING
    assert cell.record(cell.start(prompt_tokens=2)).local, "short prompts are still served"


def test_without_prefill_workers_only_what_needs_one_is_given_up() -> None:
    cell = Cell(limits=SHORT, pages=8)
    cell.feed(WorkerLost("p0", "killed"))
    running = cell.start(prompt_tokens=8, max_tokens=25)  # all pages
    long, _ = cell.submit(prompt_tokens=9)
    short, _ = cell.submit(prompt_tokens=2)
    for seconds in (0.0, LIMITS.worker_absence_s + 1.0):
        cell.now += seconds
        cell.feed(Ticked())
    assert failed(cell, long).code == "worker_lost"
    assert list(cell.state.queue) == [short]
    cell.feed(CancelAsked(running))
    cell.decode_lets_go(running)
    assert cell.record(short).phase is Phase.PREFILLING


def test_token_1_of_a_request_that_is_handed_off_ends_the_process_if_decode_makes_it() -> None:
    cell = Cell()
    request_id = cell.start()
    with pytest.raises(AssertionError, match="does not compute it"):
        cell.machine.handle(TokensMade("d0", (TokenStep(request_id, 0, token(0)),)), cell.now)


# --- ends ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", [CancelAsked, StopStringFound])
@pytest.mark.parametrize("tokens", [0, 1, 2])
def test_the_client_ends_a_request_in_every_phase(
    event: type[CancelAsked] | type[StopStringFound], tokens: int
) -> None:
    cell = aggregated()
    request_id = cell.start(max_tokens=4)
    for index in range(tokens):
        cell.token(request_id, index)
    assert told(cell.feed(event(request_id))) == [("d0", CancelRequest(request_id=request_id))]
    waits = event is StopStringFound and tokens > 0  # for the numbers of the worker
    assert (cell.last_word(request_id) is None) == waits
    assert cell.token(request_id, tokens) == [], "the worker had not heard of it"
    assert cell.worker("d0").backlog_tokens == 0
    assert cell.worker("d0").free_pages < 64
    cell.decode_lets_go(request_id)
    assert finished(cell, request_id).reason is (CANCELLED if event is CancelAsked else STOP)
    assert cell.worker("d0").free_pages == 64
    assert cell.state.requests == {}


def test_a_prompt_that_was_cancelled_before_token_1_is_owed_until_it_is_let_go() -> None:
    cell = aggregated()
    request_id = cell.start()
    cell.feed(CancelAsked(request_id))
    assert cell.worker("d0").backlog_tokens == 8
    cell.decode_lets_go(request_id)
    assert cell.worker("d0").backlog_tokens == 0


@pytest.mark.parametrize("tokens", [0, 1])
def test_a_worker_that_cannot_go_on_fails_the_request_with_its_reason(tokens: int) -> None:
    cell = aggregated()
    request_id = cell.start()
    for index in range(tokens):
        cell.token(request_id, index)
    cell.decode_lets_go(request_id, error="the grammar has no way on")
    assert failed(cell, request_id).code == "internal"
    assert "the grammar has no way on" in failed(cell, request_id).message
    assert cell.worker("d0").backlog_tokens == 0


@pytest.mark.parametrize("tokens", [0, 1, 2])
def test_a_lost_worker_takes_its_requests_along(tokens: int) -> None:
    cell = aggregated(workers=2)
    request_id = cell.start()
    other = cell.start()
    for index in range(tokens):
        cell.token(request_id, index)
    assert told(cell.feed(WorkerLost("d0", "killed"))) == [], "no other worker has anything to do with it"
    assert failed(cell, request_id).code == "worker_lost"
    assert cell.record(other).decode_worker == "d1"
    cell.join("d0", epoch=2)
    assert cell.record(cell.start()).decode_worker == "d0"


def test_a_deadline_ends_a_prompt_that_is_being_computed() -> None:
    cell = aggregated()
    request_id = cell.start(timeout_s=1.0)
    cell.now += 1.0
    assert told(cell.feed(Ticked())) == [("d0", CancelRequest(request_id=request_id))]
    assert failed(cell, request_id).code == "timeout"


def test_an_aggregated_cell_does_not_miss_the_prefill_workers_that_it_never_had() -> None:
    cell = aggregated(pages=8)
    cell.start(prompt_tokens=8, max_tokens=25, timeout_s=1e6)
    queued, _ = cell.submit(timeout_s=1e6)
    for _ in range(3):
        cell.now += LIMITS.worker_absence_s
        cell.feed(Ticked())
    assert list(cell.state.queue) == [queued]
    cell.feed(WorkerLost("d0", "killed"))
    cell.feed(Ticked())
    cell.now += LIMITS.worker_absence_s + 1.0
    cell.feed(Ticked())
    assert failed(cell, queued).code == "worker_lost"
