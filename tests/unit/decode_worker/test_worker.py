"""Does a decode worker compute its own prompts beside its streams, and give back every page however a request ends?

The real worker with the fake engine and the in-process wire. Prefill made token 1 with weight 1, this worker computes
with weight 5, so each token says who made it. Twice: with an engine whose steps end when they return, and with one
whose steps end later, so that the worker begins them ahead; test_steps.py looks closer at that.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import pytest

from decode_worker.config import DecodeConfig
from decode_worker.worker import DecodeWorker
from engine.config import FakeEngineConfig
from engine.fake import FakeEngine, fake_tokens
from engine.port import PendingStep, Row, RowResult
from engine.thread import EngineThread
from runtime.clock import Clock, SystemClock
from runtime.params import FinishReason, SamplingParams
from tests.support.handoff import turns, until
from tests.support.kv_pair import LAYOUT, Pair, filled, pair
from transport.messages.worker import Admit, CancelRequest, Released, Serve, Tokens

OURS, THEIRS = 5, 1
PAGES = 64
STEP_S = 0.001
CONFIG = DecodeConfig(
    worker_id="d0",
    coordinator="",
    run_dir="",
    parent_pid=0,
    cores=(0,),
    engine=FakeEngineConfig(pool_pages=PAGES),
    max_batch=8,
    chunk_tokens=10,
    mixed_chunk_tokens=6,
)


class RecordingEngine(FakeEngine):
    """Remembers what every step held; `before_step` runs on the engine's thread."""

    def __init__(self) -> None:
        super().__init__(LAYOUT, PAGES, weight=OURS)
        self.steps: list[list[int]] = []  # tokens fed by each row
        self.before_step: Callable[[int], None] = lambda _: None

    def begin(self, rows: Sequence[Row]) -> PendingStep:
        self.before_step(len(self.steps))
        self.steps.append([len(row.token_ids) for row in rows])
        return super().begin(rows)


class AheadEngine(RecordingEngine):
    """Computes a step some time after it was begun, as a device does."""

    runs_ahead = True

    def begin(self, rows: Sequence[Row]) -> PendingStep:
        self.before_step(len(self.steps))
        self.steps.append([len(row.token_ids) for row in rows])
        return Later(self, rows)

    def compute(self, rows: Sequence[Row]) -> list[RowResult]:
        return FakeEngine.begin(self, rows).results()


@dataclass
class Later:
    """A step of an `AheadEngine`."""

    engine: AheadEngine
    rows: Sequence[Row]

    def results(self) -> list[RowResult]:
        time.sleep(STEP_S)
        return self.engine.compute(self.rows)


class Coordinator:
    """The worker's membership: keeps what it says."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.welcomed = asyncio.Event()
        self.tokens: dict[int, list[int]] = {}
        self.finishes: dict[int, FinishReason] = {}
        self.released: dict[int, Released] = {}

    async def serve(self, *_: object) -> None:
        self.welcomed.set()
        await self.stop.wait()

    def send(self, message: Tokens | Released) -> None:
        if isinstance(message, Released):
            assert message.request_id not in self.released
            self.released[message.request_id] = msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=Released)
            return
        for step in message.steps:
            assert step.request_id not in self.released, "a token after the last word"
            made = self.tokens.setdefault(step.request_id, [])
            assert step.index == len(made) + (0 if step.request_id < 100 else 1)
            made.append(step.token.token_id)
            if step.finish is not None:
                self.finishes[step.request_id] = step.finish


class Bench:
    """A worker with what it is given; `engine` and `thread` may be a test's own."""

    def __init__(self, ports: Pair, engine: Any, thread: Any, clock: Clock) -> None:
        self.ports = ports
        self.engine = engine
        self.thread = thread
        self.said = Coordinator()
        self.keep: list[FakeEngine] = []
        membership: Any = self.said
        self.worker = DecodeWorker(engine, thread, ports.decode, membership, clock, CONFIG)

    def serve(self, request_id: int, tokens: int, max_tokens: int = 4, **sampling: Any) -> list[int]:
        """Ask for a prompt to be computed here; its answer."""
        prompt = tuple(range(request_id, request_id + tokens))
        params = SamplingParams(max_tokens=max_tokens, seed=0, **sampling)
        pages = LAYOUT.pages_for(tokens + max_tokens - 1)
        self.worker.on_message(Serve(request_id=request_id, prompt=prompt, sampling=params, pages=pages))
        return fake_tokens(prompt, max_tokens, prefill_weight=OURS, decode_weight=OURS)

    def hand_off(self, request_id: int, tokens: int, max_tokens: int, **sampling: Any) -> list[int]:
        """A request whose prompt somebody else has computed; its tokens from token 2 on."""
        prompt = tuple(range(request_id, request_id + tokens))
        pages = tuple(range(LAYOUT.pages_for(tokens)))
        source = filled(prompt, pages)
        outbound = self.ports.prefill.send(request_id, self.ports.decode.peer, source.regions(pages))
        answer = fake_tokens(prompt, max_tokens, prefill_weight=THEIRS, decode_weight=OURS)
        self.worker.on_message(
            Admit(
                request_id=request_id,
                transfer_id=request_id,
                peer=self.ports.prefill.peer,
                prompt=prompt,
                sampling=SamplingParams(max_tokens=max_tokens, seed=0, **sampling),
                pages=LAYOUT.pages_for(tokens + max_tokens - 1),
            )
        )
        outbound.push(len(pages) * LAYOUT.page_bytes)
        outbound.finish(source.digest(pages), msgspec.msgpack.encode(answer[0]))
        self.keep.append(source)  # its memory is read until the transfer has settled
        return answer[1:]

    def cancel(self, request_id: int) -> None:
        self.worker.on_message(CancelRequest(request_id=request_id))

    async def ended(self, *request_ids: int) -> None:
        await until(lambda: self.said.released.keys() >= set(request_ids))


def run_bench(make: Callable[[Pair], Bench], main: Callable[[Any], Awaitable[None]]) -> None:
    """`main` with a bench that `make` makes inside the loop; no pages are held at the end."""

    async def guarded() -> None:
        ports = pair()
        bench = make(ports)
        hello: Any = None
        serving = asyncio.create_task(bench.worker.run(hello, asyncio.Event()))
        try:
            async with asyncio.timeout(20):
                await bench.said.welcomed.wait()
                await main(bench)
            bench.worker.pool.check()
            assert bench.worker.pool.free_pages == PAGES, "pages are still held"
        finally:
            bench.said.stop.set()
            await serving
            bench.thread.close()
            ports.close()

    asyncio.run(guarded())


Run = Callable[[Callable[[Bench], Awaitable[None]]], None]


@pytest.fixture(params=[RecordingEngine, AheadEngine], ids=["in step", "ahead"])
def run(request: pytest.FixtureRequest) -> Run:
    def make(ports: Pair) -> Bench:
        return Bench(ports, request.param(), EngineThread(), SystemClock())

    return partial(run_bench, make)


def test_a_prompt_is_computed_in_chunks_and_decoded_here(run: Run) -> None:
    async def main(bench: Bench) -> None:
        answer = bench.serve(1, tokens=25)
        await bench.ended(1)
        assert bench.said.tokens[1] == answer
        assert bench.said.finishes[1] is FinishReason.LENGTH
        assert bench.engine.steps == [[10], [10], [5], [1], [1], [1]]
        released = bench.said.released[1]
        assert released.error is None
        assert released.prefill is not None
        assert released.prefill.chunks == 3
        assert released.stages is not None
        assert released.stages.steps == 3

    run(main)


@pytest.mark.parametrize("tokens", [1, 3, 4, 5, 9, 10, 11, 20, 21])
def test_prompts_around_the_borders_of_pages_and_chunks(run: Run, tokens: int) -> None:
    async def main(bench: Bench) -> None:
        answer = bench.serve(1, tokens)
        await bench.ended(1)
        assert bench.said.tokens[1] == answer

    run(main)


def test_one_token_is_all(run: Run) -> None:
    async def main(bench: Bench) -> None:
        answer = bench.serve(1, tokens=25, max_tokens=1)
        await bench.ended(1)
        assert bench.said.tokens[1] == answer
        assert bench.engine.steps == [[10], [10], [5]]

    run(main)


def test_a_stream_gets_its_token_in_every_step_beside_the_chunks_of_a_prompt(run: Run) -> None:
    async def main(bench: Bench) -> None:
        stream = bench.serve(1, tokens=4, max_tokens=30)
        await until(lambda: len(bench.said.tokens.get(1, [])) > 2)
        began = len(bench.engine.steps)
        prompt = bench.serve(2, tokens=25)
        await bench.ended(1, 2)
        assert (bench.said.tokens[1], bench.said.tokens[2]) == (stream, prompt)
        mixed = [step for step in bench.engine.steps[began:] if max(step) > 1 or len(step) > 1]
        assert mixed[:5] == [[1, 6], [1, 6], [1, 6], [1, 6], [1, 1]]
        assert all(step[0] == 1 for step in mixed), "who decodes is in every step"

    run(main)


def test_local_and_handed_off_requests_share_the_batch(run: Run) -> None:
    async def main(bench: Bench) -> None:
        remote = bench.hand_off(100, tokens=10, max_tokens=40)
        await until(lambda: bool(bench.said.tokens.get(100)))
        local = [bench.serve(request_id, tokens=17, max_tokens=9) for request_id in (1, 2, 3)]
        await bench.ended(1, 2, 3, 100)
        assert bench.said.tokens[100] == remote
        assert [bench.said.tokens[request_id] for request_id in (1, 2, 3)] == local
        assert bench.said.released[100].prefill is None

    run(main)


def test_pages_that_arrive_during_a_step_are_in_the_next_one(run: Run) -> None:
    async def main(bench: Bench) -> None:
        loop = asyncio.get_running_loop()

        async def hand_off() -> None:
            bench.hand_off(100, tokens=10, max_tokens=5)
            await turns()  # the loopback moves the pages, and the worker asks its engine thread to check them

        def meanwhile(number: int) -> None:
            if number == 3:
                asyncio.run_coroutine_threadsafe(hand_off(), loop).result()

        bench.engine.before_step = meanwhile
        bench.serve(1, tokens=4, max_tokens=10)
        await bench.ended(1, 100)
        assert [len(step) for step in bench.engine.steps[:6]] == [1, 1, 1, 1, 2, 2]

    run(main)


@pytest.mark.parametrize("step", [0, 1, 2, 3, 5])
def test_a_cancel_in_a_step_waits_for_its_end(run: Run, step: int) -> None:
    """Steps 0 to 2 compute the prompt, the others decode."""

    async def main(bench: Bench) -> None:
        loop = asyncio.get_running_loop()

        async def cancel() -> None:
            bench.cancel(1)

        def meanwhile(number: int) -> None:
            if number == step:
                asyncio.run_coroutine_threadsafe(cancel(), loop).result()

        bench.engine.before_step = meanwhile
        answer = bench.serve(1, tokens=25, max_tokens=20)
        other = bench.serve(2, tokens=12)
        await bench.ended(1, 2)
        made = bench.said.tokens.get(1, [])
        assert made == answer[: len(made)]
        assert len(made) < 20
        assert bench.said.released[1].error is None
        stages = bench.said.released[1].stages
        assert stages is None or stages.send_s == 0, "its last token was not sent after this step"
        assert bench.said.tokens[2] == other

    run(main)


def test_a_cancel_before_the_first_step(run: Run) -> None:
    async def main(bench: Bench) -> None:
        bench.serve(1, tokens=25)
        bench.cancel(1)
        await bench.ended(1)
        assert bench.engine.steps == []
        assert bench.said.released[1].stages is None
        bench.cancel(1)  # unknown by now
        answer = bench.serve(2, tokens=3)
        await bench.ended(2)
        assert bench.said.tokens[2] == answer

    run(main)


def test_a_prompt_that_gets_no_token_1_fails_alone(run: Run) -> None:
    """The fake engine knows no grammars, and says so where the first token would be drawn."""

    async def main(bench: Bench) -> None:
        bench.serve(1, tokens=12, grammar="start: /a/")
        other = bench.serve(2, tokens=12)
        await bench.ended(1, 2)
        assert 1 not in bench.said.tokens
        assert "knows no grammars" in (bench.said.released[1].error or "")
        assert bench.said.tokens[2] == other

    run(main)


def test_a_prompt_is_sent_only_once(run: Run) -> None:
    async def main(bench: Bench) -> None:
        bench.serve(1, tokens=25)
        with pytest.raises(ValueError, match="cannot reserve"):
            bench.serve(1, tokens=25)
        await bench.ended(1)

    run(main)
