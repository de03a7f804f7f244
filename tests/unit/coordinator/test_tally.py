"""Are requests, tokens and times counted as the documents say?"""

import asyncio

import pytest

from coordinator.events import DecodeLetGo, FirstTokenMade, PrefillLetGo, Stopped, Ticked, TokensMade, WorkerLost
from coordinator.service import Service
from coordinator.streams import StreamEnd
from coordinator.tally import BYTE_BUCKETS, DURATION_BUCKETS_S, RATE_BUCKETS, TOKEN_BUCKETS, Histogram, Tally
from coordinator.text import ByteText
from coordinator.validation import InvalidRequest
from runtime.params import FinishReason, SamplingParams
from runtime.stages import DecodeStages, Ledger, PrefillStages
from runtime.tokens import SampledToken
from tests.support.front import Front
from tests.support.metrics import PREFILL, SimulatedService, ask
from tests.support.scripted_server import ManualClock
from transport.messages.client import GenerateRequest
from transport.messages.worker import TokenStep


def of(histogram: Histogram) -> tuple[int, float]:
    return histogram.count, pytest.approx(histogram.total)  # type: ignore[return-value]  # compares like a float


def test_a_value_on_a_bound_belongs_below_it() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.0, 1.0, 1.5, 2.0, 2.5):
        histogram.observe(value)
    assert histogram.counts == [2, 2, 1]
    assert (histogram.count, histogram.total) == (5, 7.0)


@pytest.mark.parametrize("bounds", [DURATION_BUCKETS_S, TOKEN_BUCKETS, BYTE_BUCKETS, RATE_BUCKETS])
def test_bounds_ascend(bounds: tuple[float, ...]) -> None:
    assert list(bounds) == sorted(set(bounds))


def test_what_is_not_handed_off_is_in_no_number_about_hand_offs() -> None:
    """Submitted at 0; tokens at 0.5, 0.75 and 0.85, all from the decode worker, which computed the prompt."""
    cell = SimulatedService(aggregated=True)
    start = cell.clock.time
    request_id, _ = cell.submit(ask())
    for index, at in enumerate((0.5, 0.75, 0.85)):
        cell.clock.time = start + at
        cell.token(request_id, index, 65, FinishReason.LENGTH if index == 2 else None)
    stages = PrefillStages(queue_s=0.01, compute_s=0.4, chunks=2)
    cell.service.handle(
        DecodeLetGo("d0", request_id, 0, DecodeStages(join_s=0.03, decode_s=0.3, steps=2), None, stages)
    )
    tally = cell.service.tally
    assert (tally.local_prompts, tally.prompt_tokens, tally.generated_tokens) == (1, 2, 3)
    assert [one.count for one in (tally.handoff_gap, tally.transfer, tally.intake, tally.verify)] == [0, 0, 0, 0]
    assert tally.inter_token_latency.count == 2
    assert of(tally.prefill_queue) == (1, 0.01)
    assert of(tally.prefill_compute) == (1, 0.4)
    assert of(tally.join) == (1, 0.03)
    assert of(tally.decode) == (1, 0.3)


def test_an_answer_with_hand_computed_times() -> None:
    """Submitted at 0; token 1 at 0.5, 2 at 0.75, 3 at 0.85, 4 (the last) at 0.95; both workers report at 1.0."""
    cell = SimulatedService()
    cell.answer()
    tally = cell.service.tally
    assert tally.outcomes["length"] == sum(tally.outcomes.values()) == 1
    assert (tally.prompt_tokens, tally.generated_tokens) == (2, 4)
    assert of(tally.time_to_first_token) == (1, 0.5)
    assert of(tally.handoff_gap) == (1, 0.25)
    assert of(tally.inter_token_latency) == (3, 0.45)
    assert of(tally.time_per_output_token) == (1, 0.15)
    assert of(tally.end_to_end) == (1, 0.95), "until the last token, not until the workers have reported"
    assert of(tally.queue) == (1, 0.0)
    assert of(tally.dispatched_to_first_token) == (1, 0.5)
    assert of(tally.first_to_last_token) == (1, 0.45)
    assert of(tally.dispatched_to_last_token) == (1, 0.95)
    assert of(tally.answer_prompt_tokens) == (1, 2)
    assert of(tally.answer_generated_tokens) == (1, 4)
    assert of(tally.answer_max_tokens) == (1, 8)
    assert of(tally.prefill_queue) == (1, 0.01)
    assert of(tally.prefill_compute) == (1, 0.4)
    assert of(tally.transfer) == (1, 0.2)
    assert of(tally.transfer_tail) == (1, 0.05)
    assert of(tally.transfer_bytes) == (1, 1_000_000)
    assert of(tally.transfer_rate) == (1, 5_000_000.0)
    assert of(tally.intake) == (1, 0.6)
    assert of(tally.verify) == (1, 0.02)
    assert of(tally.join) == (1, 0.03)
    assert of(tally.decode) == (1, 0.3)
    assert tally._open == {}


def test_a_request_that_waits_is_queued_until_it_is_dispatched() -> None:
    cell = SimulatedService(total_pages=3)  # one request of 2 + 8 - 1 tokens needs them all
    first, _ = cell.submit(ask())
    second, _ = cell.submit(ask())
    cell.clock.time += 2.0
    cell.service.cancel(first)
    cell.let_go(first)
    cell.clock.time += 0.5
    cell.first(second, 65, FinishReason.STOP)
    cell.let_go(second)
    tally = cell.service.tally
    assert of(tally.queue) == (1, 2.0)
    assert of(tally.time_to_first_token) == (1, 2.5)
    assert of(tally.dispatched_to_first_token) == (1, 0.5)


def test_one_token_is_all() -> None:
    cell = SimulatedService()
    request_id, _ = cell.submit(GenerateRequest(prompt="hi", sampling=SamplingParams(max_tokens=1)))
    cell.clock.time += 0.5
    cell.first(request_id, 65, FinishReason.LENGTH)
    stages = PrefillStages(queue_s=0.0, compute_s=0.5, chunks=1)
    cell.service.handle(PrefillLetGo("p0", request_id, 0, stages, None))
    tally = cell.service.tally
    assert of(tally.time_to_first_token) == of(tally.end_to_end) == of(tally.prefill_compute) == (1, 0.5)
    none = (tally.handoff_gap, tally.inter_token_latency, tally.time_per_output_token, tally.transfer, tally.intake)
    assert [histogram.count for histogram in none] == [0] * 5


def test_decodes_tokens_that_overtook_token_1_count_when_they_are_handed_on() -> None:
    cell = SimulatedService()
    request_id, _ = cell.submit(ask())
    cell.clock.time += 0.5
    cell.token(request_id, 1, 66)
    assert cell.service.tally.generated_tokens == 0
    cell.clock.time += 0.5
    cell.first(request_id, 65)
    assert of(cell.service.tally.time_to_first_token) == (1, 1.0)
    assert of(cell.service.tally.handoff_gap) == of(cell.service.tally.inter_token_latency) == (1, 0.0)


def test_tokens_that_come_together_have_one_gap() -> None:
    tally = Tally()
    tally.started(1, 5, 9, 10.0)
    tally.delivered(1, 3, 11.0)
    tally.delivered(1, 5, 13.0)
    assert (tally.prompt_tokens, tally.generated_tokens) == (5, 5)
    assert of(tally.time_to_first_token) == (1, 1.0)
    assert of(tally.handoff_gap) == (1, 0.0)
    assert of(tally.inter_token_latency) == (4, 2.0)
    tally.finished(1, StreamEnd(FinishReason.STOP, "", 5, 5, Ledger(total_s=3.0), None))
    assert of(tally.time_per_output_token) == (1, 0.5)


def test_what_follows_a_stop_string_is_not_counted() -> None:
    cell = SimulatedService()
    request_id, front = cell.submit(ask(stop=("b",)))
    cell.first(request_id, ord("a"))
    steps = tuple(TokenStep(request_id, index, SampledToken(letter)) for index, letter in enumerate(b"bc", 1))
    cell.service.handle(TokensMade("d0", steps))
    cell.let_go(request_id)
    assert front.end is not None
    assert cell.service.tally.generated_tokens == front.end.completion_tokens == 2
    assert cell.service.tally.outcomes["stop"] == 1


def test_a_stop_string_in_the_last_token_is_the_reason() -> None:
    cell = SimulatedService()
    request_id, _ = cell.submit(ask(stop=("b",)))
    cell.first(request_id, ord("b"), FinishReason.LENGTH)
    cell.let_go(request_id)
    outcomes = cell.service.tally.outcomes
    assert (outcomes["stop"], outcomes["length"]) == (1, 0)


def test_every_start_has_one_outcome() -> None:
    cell = SimulatedService()
    tally = cell.service.tally
    cancelled, _ = cell.submit(ask())
    cell.first(cancelled, 65)
    cell.service.cancel(cancelled)
    cell.let_go(cancelled)
    assert (tally.outcomes["cancelled"], tally.end_to_end.count, tally.generated_tokens) == (1, 0, 1)
    late, _ = cell.submit(ask())
    cell.clock.time += 60.0
    cell.service.handle(Ticked())
    cell.let_go(late)
    failed, _ = cell.submit(ask())
    cell.service.handle(PrefillLetGo("p0", failed, 0, None, "no memory"))
    cell.service.handle(DecodeLetGo("d0", failed, 0, None, None))
    cell.submit(ask())
    cell.service.handle(WorkerLost("d0", "killed"))
    cell.submit(ask())
    cell.service.handle(Stopped())
    cell.submit(ask())
    assert {outcome: count for outcome, count in tally.outcomes.items() if count} == {
        "cancelled": 1,
        "timeout": 1,
        "internal": 1,
        "worker_lost": 1,
        "draining": 2,
    }
    assert tally._open == {}


def test_a_refusal_is_no_request() -> None:
    cell = SimulatedService()
    for request in (GenerateRequest(), GenerateRequest(prompt="x", model="n"), GenerateRequest(prompt="")):
        with pytest.raises(InvalidRequest):
            cell.submit(request)
    tally = cell.service.tally
    assert {code: count for code, count in tally.refusals.items() if count} == {
        "invalid_request": 2,
        "model_not_found": 1,
    }
    assert (sum(tally.outcomes.values()), tally.prepare.count) == (0, 0)


def test_a_service_without_a_model_refuses() -> None:
    service = Service(SimulatedService.CONFIG, ByteText(), ManualClock(), lambda *_: None)
    with pytest.raises(InvalidRequest):
        asyncio.run(service.submit(ask(), Front()))
    assert service.tally.refusals["loading"] == 1


def test_a_worker_that_reports_nothing_leaves_its_stages_out() -> None:
    cell = SimulatedService()
    request_id, _ = cell.submit(ask())
    cell.service.handle(FirstTokenMade("p0", request_id, SampledToken(65), FinishReason.STOP))
    cell.service.handle(PrefillLetGo("p0", request_id, 0, PREFILL, None))
    cell.service.handle(DecodeLetGo("d0", request_id, 0, None, None))
    tally = cell.service.tally
    assert (tally.prefill_compute.count, tally.decode.count, tally.end_to_end.count) == (1, 0, 1)


def test_who_never_joined_a_batch_is_in_no_histogram_of_it() -> None:
    """A stop string is complete with token 1; the decode worker hears of it while the pages arrive."""
    cell = SimulatedService()
    request_id, front = cell.submit(ask(stop=("A",)))
    cell.first(request_id, ord("A"))
    cell.service.handle(PrefillLetGo("p0", request_id, 0, PREFILL, None))
    cell.service.handle(DecodeLetGo("d0", request_id, 0, DecodeStages(intake_s=0.5), None))
    assert front.end is not None
    tally = cell.service.tally
    assert tally.outcomes["stop"] == 1
    assert of(tally.intake) == (1, 0.5)
    assert (tally.join.count, tally.decode.count) == (0, 0)
