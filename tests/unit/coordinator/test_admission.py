"""Is a request accepted, refused or made to wait exactly where the limits say?"""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator import admission
from coordinator.admission import AdmissionLimits
from coordinator.local_prefill import LocalPrefill
from coordinator.state import CellState, WorkerRecord
from tests.support.cells import request, worker

LIMITS = AdmissionLimits(max_queued_requests=3, max_queued_tokens=100, prefill_backlog_tokens=50)


def cell_of(*workers: WorkerRecord, queued: tuple[int, ...] = ()) -> CellState:
    cell = CellState(workers={record.worker_id: record for record in workers})
    for request_id, prompt_tokens in enumerate(queued):
        cell.requests[request_id] = request(request_id, prompt_tokens, 4)
        cell.queue.append(request_id)
    return cell


# --- pages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "pages"), [(4, 1, 1), (4, 2, 2), (8, 1, 2), (1, 4, 1), (1, 5, 2), (16, 17, 8)]
)
def test_pages_for_the_worst_case(prompt: int, max_tokens: int, pages: int) -> None:
    assert admission.pages_needed(prompt, max_tokens, page_tokens=4) == pages


@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 64))
def test_the_pages_hold_every_token_that_is_ever_fed_and_none_is_spare(prompt: int, output: int, size: int) -> None:
    fed = [*range(prompt), *(prompt + index for index in range(output - 1))]  # the last token is never fed
    assert admission.pages_needed(prompt, output, size) == len({position // size for position in fed})


def test_one_token_is_not_handed_off() -> None:
    assert not admission.hands_off(1)
    assert admission.hands_off(2)


# --- the queue -------------------------------------------------------------------------------------------------------


def test_the_queue_takes_as_many_requests_as_the_limit_says() -> None:
    assert admission.overload(cell_of(queued=(1, 1)), 1, LIMITS) is None
    busy = admission.overload(cell_of(queued=(1, 1, 1)), 1, LIMITS)
    assert busy is not None
    assert "3 requests wait already" in busy


def test_the_queue_takes_as_many_tokens_as_the_limit_says() -> None:
    assert admission.overload(cell_of(queued=(60,)), 40, LIMITS) is None
    busy = admission.overload(cell_of(queued=(60,)), 41, LIMITS)
    assert busy is not None
    assert "60 prompt tokens wait already" in busy


def test_an_empty_queue_takes_any_prompt() -> None:
    assert admission.overload(cell_of(), 1000, LIMITS) is None


# --- what never fits -------------------------------------------------------------------------------------------------


def test_what_no_pool_could_hold_is_named_with_both_numbers() -> None:
    cell = cell_of(worker("p0", "prefill", 4), worker("p1", "prefill", 5), worker("d0", "decode", 6))
    assert admission.never_fits(cell, 20, 1, LIMITS) is None
    too_long = admission.never_fits(cell, 21, 1, LIMITS)
    assert too_long is not None
    assert "21 tokens" in too_long
    assert "holds 20" in too_long
    assert admission.never_fits(cell, 20, 5, LIMITS) is None, "20 + 5 - 1 tokens fit 6 pages of 4"
    too_much = admission.never_fits(cell, 20, 6, LIMITS)
    assert too_much is not None
    assert "25 tokens of KV" in too_much
    assert "holds 24" in too_much


def test_nothing_is_impossible_before_the_workers_are_there() -> None:
    assert admission.never_fits(cell_of(), 10**6, 10**6, LIMITS) is None
    assert admission.never_fits(cell_of(worker("p0", "prefill", 4)), 16, 10**6, LIMITS) is None


def test_in_an_aggregated_cell_one_token_needs_the_pages_of_its_prompt_on_a_decode_worker() -> None:
    cell = cell_of(worker("d0", "decode", 5))
    alone = replace(LIMITS, local=LocalPrefill(aggregated=True))
    assert admission.never_fits(cell, 20, 1, alone) is None
    assert admission.never_fits(cell, 21, 1, alone) is not None
    assert admission.never_fits(cell, 21, 1, LIMITS) is None, "a prefill worker may still join"


def test_a_prompt_that_a_decode_worker_may_compute_is_not_bounded_by_the_prefill_workers() -> None:
    cell = cell_of(worker("p0", "prefill", 4), worker("d0", "decode", 6))
    short = replace(LIMITS, local=LocalPrefill(prompt_tokens=30))
    assert admission.never_fits(cell, 17, 1, LIMITS) is not None
    assert admission.never_fits(cell, 17, 1, short) is None
    assert admission.never_fits(cell, 24, 2, short) is not None
    assert admission.never_fits(cell, 25, 1, short) is not None, "it fits neither of the two"


def test_quarantined_pages_count_as_gone() -> None:
    prefill, decode = worker("p0", "prefill", 4), worker("d0", "decode", 6)
    prefill.quarantined_pages = decode.quarantined_pages = 1
    cell = cell_of(prefill, decode)
    assert admission.never_fits(cell, 12, 1, LIMITS) is None
    assert admission.never_fits(cell, 13, 1, LIMITS) is not None
    assert admission.never_fits(cell, 12, 9, LIMITS) is None
    assert admission.never_fits(cell, 12, 10, LIMITS) is not None
    assert admission.largest_decode_tokens(cell) == 20


def test_largest_decode_tokens() -> None:
    assert admission.largest_decode_tokens(cell_of(worker("p0", "prefill", 9))) == 0
    assert admission.largest_decode_tokens(cell_of(worker("d0", "decode", 3), worker("d1", "decode", 5))) == 20


# --- room now --------------------------------------------------------------------------------------------------------


def test_a_prefill_worker_has_room_while_it_owes_less_than_the_limit() -> None:
    prefill = worker("p0", "prefill", 1000)
    for backlog, room in ((0, True), (49, True), (50, False), (51, False)):
        prefill.backlog_tokens = backlog
        assert admission.has_prefill_room(prefill, 500, LIMITS) == room


def test_an_idle_prefill_worker_takes_a_prompt_whatever_the_limit() -> None:
    none = AdmissionLimits(3, 100, prefill_backlog_tokens=0)
    assert admission.has_prefill_room(worker("p0", "prefill", 1000), 500, none)


def test_a_prompt_needs_its_pages_on_the_prefill_worker() -> None:
    prefill = worker("p0", "prefill", 4)
    assert admission.has_prefill_room(prefill, 16, LIMITS)
    assert not admission.has_prefill_room(prefill, 17, LIMITS)
    prefill.quarantined_pages = 1
    assert not admission.has_prefill_room(prefill, 16, LIMITS)


def test_a_decode_worker_has_room_for_free_pages_and_a_free_row() -> None:
    decode = worker("d0", "decode", 8, max_batch=2)
    assert admission.has_decode_room(decode, 8)
    assert not admission.has_decode_room(decode, 9)
    decode.requests = {1}
    assert admission.has_decode_room(decode, 8)
    decode.requests = {1, 2}
    assert not admission.has_decode_room(decode, 1)
