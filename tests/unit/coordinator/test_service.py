"""Does a request get from a front to the workers, and do its tokens get back as text, whatever happens meanwhile?"""

import asyncio

import pytest

from coordinator.config import RequestLimits
from coordinator.events import (
    DecodeLetGo,
    FirstTokenMade,
    PrefillLetGo,
    SelfTested,
    Ticked,
    TokensMade,
    WorkerJoined,
    WorkerLost,
)
from coordinator.service import Service
from coordinator.streams import Finished
from coordinator.text import ByteText
from coordinator.validation import InvalidRequest
from runtime.description import ModelInfo
from runtime.params import FinishReason, SamplingParams
from runtime.tokens import SampledToken
from tests.support.cells import peer, pool
from tests.support.configs import coordinator_config
from tests.support.front import Front
from tests.support.scripted_server import ManualClock
from transport.messages.client import ChatMessage, GenerateRequest
from transport.messages.worker import Admit, CancelRequest, Prefill, SelfTest, SelfTestDone, TokenStep, ToWorker

CONFIG = coordinator_config(requests=RequestLimits(request_timeout_s=60.0))
MODEL = ModelInfo(name="m", vocab_size=256, max_model_len=40_000, eos_token_ids=(4,))


class Bench:
    """A service with a prefill and a decode worker that are linked; what they are told is in `told`."""

    def __init__(self, total_pages: int = 20_000) -> None:
        self.told: list[tuple[str, ToWorker]] = []
        self.clock = ManualClock()
        self.service = Service(CONFIG, ByteText(), self.clock, self._tell)
        self.service.model = MODEL
        self.service.handle(WorkerJoined("decode", peer("d0"), pool(total_pages), 8))
        self.service.handle(WorkerJoined("prefill", peer("p0"), pool(total_pages), 8))
        self.dead: str | None = None
        while self.told:
            worker_id, test = self.told.pop(0)
            assert isinstance(test, SelfTest)
            report = SelfTestDone(transfer_id=test.transfer_id, quarantined_pages=0)
            self.service.handle(SelfTested(worker_id, report))

    def _tell(self, worker_id: str, message: ToWorker) -> None:
        self.told.append((worker_id, message))
        if worker_id == getattr(self, "dead", None):
            self.service.handle(WorkerLost(worker_id, "it does not take its messages"))

    def submit(self, request: GenerateRequest) -> tuple[int, Front]:
        front = Front()
        return asyncio.run(self.service.submit(request, front)), front

    def first(self, request_id: int, token_id: int) -> None:
        self.service.handle(FirstTokenMade("p0", request_id, SampledToken(token_id), None))

    def token(self, request_id: int, index: int, token_id: int, finish: FinishReason | None = None) -> None:
        self.service.handle(TokensMade("d0", (TokenStep(request_id, index, SampledToken(token_id), finish),)))

    def let_go(self, request_id: int) -> None:
        self.service.handle(PrefillLetGo("p0", request_id, 0, None, None))
        self.service.handle(DecodeLetGo("d0", request_id, 0, None, None))


def ask(prompt: str = "hi", **sampling: object) -> GenerateRequest:
    return GenerateRequest(prompt=prompt, sampling=SamplingParams(max_tokens=8, **sampling))  # type: ignore[arg-type]  # named


def test_text_goes_in_and_comes_out() -> None:
    bench = Bench()
    request_id, front = bench.submit(ask("hi"))
    (decode, admit), (prefill, order) = bench.told
    assert (decode, prefill) == ("d0", "p0")
    assert isinstance(admit, Admit)
    assert isinstance(order, Prefill)
    assert admit.prompt == order.prompt == tuple(b"hi")
    assert order.sampling.seed is not None, "both workers draw from one seed"
    assert admit.sampling == order.sampling
    assert (bench.service.in_flight, bench.service.idle) == (1, False)
    bench.first(request_id, ord("y"))
    bench.token(request_id, 1, ord("o"), FinishReason.STOP)
    bench.let_go(request_id)
    assert [delta.text for delta in front.deltas] == ["y", "o"]
    assert front.end is not None
    assert (front.end.reason, front.end.prompt_tokens, front.end.completion_tokens) == (FinishReason.STOP, 2, 2)
    assert (bench.service.in_flight, bench.service.idle) == (0, True)


@pytest.mark.parametrize(
    ("request_", "prompt"),
    [
        (GenerateRequest(prompt_token_ids=(1, 2, 3), sampling=SamplingParams(max_tokens=2)), (1, 2, 3)),
        (
            GenerateRequest(messages=(ChatMessage(role="user", content="hi"),), sampling=SamplingParams(max_tokens=2)),
            tuple(b"user: hi\nassistant: "),
        ),
        (GenerateRequest(prompt="x" * 30_000, sampling=SamplingParams(max_tokens=2)), tuple(b"x" * 30_000)),
    ],
    ids=["token ids", "chat", "a text long enough for the helper thread"],
)
def test_every_form_of_prompt_becomes_tokens(request_: GenerateRequest, prompt: tuple[int, ...]) -> None:
    bench = Bench()
    bench.submit(request_)
    orders = [message for _, message in bench.told if isinstance(message, Prefill)]
    assert [order.prompt for order in orders] == [prompt]


def test_a_stop_string_ends_the_request_at_both_workers() -> None:
    bench = Bench()
    request_id, front = bench.submit(ask(stop=("END",)))
    bench.told.clear()
    for index, letter in enumerate(b"go END"):
        if index == 0:
            bench.first(request_id, letter)
        else:
            bench.token(request_id, index, letter)
    stop = CancelRequest(request_id=request_id)
    assert sorted(bench.told) == [("d0", stop), ("p0", stop)]
    assert front.text == "go "
    assert front.deltas[-1].finish == Finished(FinishReason.STOP, "END"), "it waits for nobody"
    assert front.end is None, "the numbers of the workers are not in"
    bench.token(request_id, 6, ord("!"))  # it had been computed already
    bench.let_go(request_id)
    assert front.end is not None
    assert (front.end.reason, front.end.stop_reason) == (FinishReason.STOP, "END")
    assert front.text == "go "
    assert bench.service.idle


def test_a_cancelled_request_ends_once() -> None:
    bench = Bench()
    request_id, front = bench.submit(ask())
    bench.service.cancel(request_id)
    assert front.end is not None
    assert front.end.reason is FinishReason.CANCELLED
    bench.service.cancel(request_id)
    bench.first(request_id, 65)
    bench.let_go(request_id)
    assert front.deltas == []
    assert bench.service.idle


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (GenerateRequest(), "prompt"),
        (GenerateRequest(prompt=""), "prompt"),
        (GenerateRequest(prompt="x", model="n"), "model"),
        (GenerateRequest(prompt="x" * 50_000), "prompt"),
        (GenerateRequest(prompt_token_ids=(256,)), "prompt_token_ids"),
        (ask(stop_token_ids=(999,)), "stop_token_ids"),
    ],
)
def test_what_cannot_be_served_starts_nothing(request_: GenerateRequest, param: str) -> None:
    bench = Bench()
    with pytest.raises(InvalidRequest) as caught:
        bench.submit(request_)
    assert caught.value.param == param
    assert bench.told == []
    assert (bench.service.in_flight, bench.service.idle) == (0, True)


def test_a_server_without_a_model_asks_for_patience() -> None:
    service = Service(CONFIG, ByteText(), ManualClock(), lambda *_: None)
    with pytest.raises(InvalidRequest, match="still loading") as caught:
        asyncio.run(service.submit(ask(), Front()))
    assert caught.value.code == "loading"


def test_a_request_that_no_pool_could_hold_fails_through_its_sink() -> None:
    bench = Bench(total_pages=4)
    _, front = bench.submit(ask("x" * 12))
    assert front.failure_code == "invalid_request"
    assert bench.service.idle


@pytest.mark.parametrize(("asked", "lasts"), [(None, 60.0), (5.0, 5.0), (600.0, 60.0)])
def test_no_request_lasts_longer_than_the_server_allows(asked: float | None, lasts: float) -> None:
    bench = Bench()
    _, front = bench.submit(GenerateRequest(prompt="x", timeout_s=asked))
    bench.clock.time += lasts - 0.1
    bench.service.handle(Ticked())
    assert front.failure is None
    bench.clock.time += 0.1
    bench.service.handle(Ticked())
    assert front.failure_code == "timeout"


def test_a_front_may_cancel_while_it_is_told_of_tokens() -> None:
    """Events that actions cause are handled in turn, after the actions that are still to be done."""
    bench = Bench()
    first, one = bench.submit(ask())
    second, other = bench.submit(ask())
    one.on_delta = lambda: bench.service.cancel(second)
    for request_id in (first, second):
        bench.service.handle(FirstTokenMade("p0", request_id, SampledToken(65), None))
    assert one.text == "A"
    assert other.end is not None
    assert other.end.reason is FinishReason.CANCELLED
    assert other.deltas == []


def test_a_worker_that_is_lost_while_it_is_told_something_fails_its_requests() -> None:
    bench = Bench()
    bench.dead = "d0"
    _, front = bench.submit(ask())
    assert front.failure_code == "worker_lost"
    assert [type(message) for worker_id, message in bench.told if worker_id == "p0"][-1] is CancelRequest
    assert bench.service.in_flight == 0


def test_a_grammar_is_checked_before_anything_starts() -> None:
    bench = Bench()
    with pytest.raises(InvalidRequest, match="mock engine follows no grammar") as caught:
        bench.submit(ask(grammar="start: /a/"))
    assert caught.value.param == "grammar"
    assert bench.told == []
    assert bench.service.idle
