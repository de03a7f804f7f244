"""How does a prefill worker live?

The I/O shell of `engine.chunking` (which tokens next) and `handoff` (where the pages go). One loop thread runs all of
this and the KV port; one engine thread computes. A step's complete pages leave while the next step computes.

Life of a prompt here: Prefill received -> `_accept` -> (a step has room and pages) `_start` -> `_advance` after each of
its chunks -> `_complete` with token 1 -> its pages settle -> `_let_go` -> PrefillReleased. A cancelled prompt goes from
wherever it is to `_abandon`, never in the middle of a step that writes to its pages; so does one whose token 1 failed.
"""

import asyncio
from collections.abc import Sequence

from engine.chunking import Chunk, ChunkLimits, next_chunks
from engine.pages import PageAllocator
from engine.port import EnginePort, Row, RowFailed, RowResult, SampleSpec
from engine.stopping import finish_reason
from engine.thread import EngineThread
from prefill_worker.config import PrefillConfig
from prefill_worker.flight import PrefillFlight
from prefill_worker.handoff import HandOff, HandOffResult, decline
from prefill_worker.prompt import Prompt
from runtime import logs
from runtime.clock import Clock
from runtime.stages import PrefillStages, with_chunk
from runtime.tokens import SampledToken
from transport.kv import KvPort
from transport.membership import Membership
from transport.messages.worker import (
    AskRecording,
    CancelRequest,
    Heartbeat,
    Hello,
    PeerGone,
    Prefill,
    Prefilled,
    PrefillReleased,
    SelfTest,
    SelfTestDone,
    ToWorker,
)
from transport.playback import Playback

_log = logs.get("prefill")


class PrefillWorker:
    """Owns the prompts at this worker and the pages they fill."""

    def __init__(
        self,
        engine: EnginePort,
        thread: EngineThread,
        kv: KvPort,
        membership: Membership,
        clock: Clock,
        config: PrefillConfig,
    ) -> None:
        self._engine = engine
        self._kv = kv
        self._membership = membership
        self._thread = thread
        self._clock = clock
        self._limits = ChunkLimits(config.chunk_tokens, config.max_prompts, engine.layout.page_tokens)
        self.pool = PageAllocator(engine.total_pages)
        self.flight = PrefillFlight()
        self._playback = Playback(self.flight, clock)
        self._prompts: dict[int, Prompt] = {}  # not yet complete, in order of arrival
        self._handoffs: dict[int, HandOff] = {}
        self._in_step: set[int] = set()
        self._work = asyncio.Event()
        self._freed = asyncio.Event()
        self._tasks = asyncio.TaskGroup()

    async def run(self, hello: Hello, stop: asyncio.Event) -> None:
        """Until the coordinator says Shutdown or `stop` is set. Anything that raises in here ends the process."""
        async with self._tasks:
            compute = self._tasks.create_task(self._compute(), name="compute")
            await self._membership.serve(hello, self.on_message, self._heartbeat, stop)
            compute.cancel()

    # --- messages ----------------------------------------------------------------------------------------------------

    def on_message(self, message: ToWorker) -> None:
        match message:
            case Prefill():
                self._accept(message)
            case CancelRequest(request_id=request_id):
                self._cancel(request_id)
            case PeerGone(worker_id=worker_id, epoch=epoch):
                self._kv.peer_gone(worker_id, epoch)
            case SelfTest():
                self._tasks.create_task(self._self_test(message))
            case AskRecording():
                self._membership.send(self._playback.answer(message))
            case _:
                raise AssertionError(f"a prefill worker was sent {type(message).__name__}")

    def _heartbeat(self) -> Heartbeat:
        self.pool.check()
        return Heartbeat(
            free_pages=self.pool.free_pages,
            reserved_pages=self.pool.reserved_pages,
            quarantined_pages=self.pool.quarantined_pages,
            running=sum(prompt.started for prompt in self._prompts.values()),
            waiting=sum(not prompt.started for prompt in self._prompts.values()),
        )

    def _accept(self, request: Prefill) -> None:
        arrived_at = self._clock.now()
        if request.request_id in self._prompts or request.request_id in self._handoffs:
            raise AssertionError(f"request {request.request_id} was sent twice")
        if request.peer is not None:
            self._kv.connect(request.peer)
        grammar = request.sampling.grammar
        matcher = self._engine.matcher(grammar) if grammar is not None else None
        self._prompts[request.request_id] = Prompt(request, arrived_at, matcher)
        self._work.set()

    def _cancel(self, request_id: int) -> None:
        prompt = self._prompts.get(request_id)
        if prompt is None:
            return  # complete: what is left is its transfer, and transfers are not cancelled
        prompt.cancelled = True
        if request_id not in self._in_step:
            self._abandon(prompt, "cancelled")

    # --- computing ---------------------------------------------------------------------------------------------------

    async def _compute(self) -> None:
        while True:
            waiting = [prompt for prompt in self._prompts.values() if not prompt.cancelled]
            chunks = next_chunks(waiting, self.pool.free_pages, self._limits)
            began = self._clock.now()
            self.flight.levels(began, self.pool, len(self._prompts), len(self._handoffs))
            if not chunks:
                self._work.clear()
                await self._work.wait()
                continue
            for chunk in chunks:
                if not chunk.prompt.started:
                    self._start(chunk.prompt)
            self._in_step = {chunk.prompt.request_id for chunk in chunks}
            fresh = [self._fresh_pages(chunk) for chunk in chunks]
            rows = [_row(chunk) for chunk in chunks]
            (results, digests), seconds = await self._thread.run_timed(self._clock, _step, self._engine, rows, fresh)
            now = self._clock.now()
            self._in_step = set()
            self.flight.step(began, now, chunks)
            for chunk, result, digest in zip(chunks, results, digests, strict=True):
                chunk.prompt.chunk_s = with_chunk(chunk.prompt.chunk_s, seconds)
                self._advance(chunk, result, digest, now)

    def _start(self, prompt: Prompt) -> None:
        request = prompt.request
        prompt.started_at = self._clock.now()
        prompt.pages = self.pool.reserve(prompt.request_id, self._engine.layout.pages_for(len(prompt.tokens)))
        if request.peer is not None:
            self.pool.hold(prompt.request_id)
            outbound = self._kv.send(request.transfer_id, request.peer, self._engine.regions(prompt.pages))
            self._handoffs[prompt.request_id] = HandOff(outbound, self._engine.layout.page_bytes, len(prompt.pages))

    def _fresh_pages(self, chunk: Chunk[Prompt]) -> Sequence[int]:
        """The pages that this chunk completes; the last chunk completes the last page, full or not."""
        size = self._limits.page_tokens
        end = len(chunk.prompt.pages) if chunk.last else chunk.end // size
        return chunk.prompt.pages[chunk.start // size : end] if chunk.prompt.request.peer is not None else ()

    def _advance(self, chunk: Chunk[Prompt], result: RowResult, digest: bytes, now: float) -> None:
        prompt = chunk.prompt
        prompt.computed = chunk.end
        prompt.chunks += 1
        if prompt.cancelled:
            self._abandon(prompt, "cancelled")
            return
        if isinstance(result, RowFailed):
            prompt.error = result.reason
            _log.warning("no token 1", extra={"fields": {"request": prompt.request_id, "why": result.reason}})
            self._abandon(prompt, result.reason)
            return
        handoff = self._handoffs.get(prompt.request_id)
        if handoff is not None:
            handoff.pages_done(digest)
        if result is not None:
            self._complete(prompt, result, handoff, now)

    def _complete(self, prompt: Prompt, token: SampledToken, handoff: HandOff | None, now: float) -> None:
        """Token 1, sampled `now`, goes to the client; the hand-off of the last pages goes on behind it."""
        finish = finish_reason(
            token.token_id,
            0,
            prompt.sampling,
            eos_token_ids=self._engine.eos_token_ids,
            prompt_tokens=len(prompt.tokens),
            max_model_len=self._engine.max_model_len,
        )
        started = prompt.started_at or now
        send_s = self._clock.now() - now
        self._membership.send(Prefilled(request_id=prompt.request_id, token=token, finish=finish))
        stages = PrefillStages(
            queue_s=started - prompt.arrived_at,
            compute_s=now - started,
            chunks=prompt.chunks,
            chunk_s=prompt.chunk_s,
            send_s=send_s,
        )
        if handoff is not None:
            if finish is None:
                handoff.complete(token.token_id, now)
            else:
                handoff.abandon("the request ended with its first token")
        self._leave(prompt, stages)

    def _abandon(self, prompt: Prompt, why: str) -> None:
        handoff = self._handoffs.get(prompt.request_id)
        if handoff is not None:
            handoff.abandon(why)
        elif prompt.request.peer is not None:
            self._tasks.create_task(decline(self._kv, prompt.request))
        self._leave(prompt, None)

    # --- letting go --------------------------------------------------------------------------------------------------

    def _leave(self, prompt: Prompt, stages: PrefillStages | None) -> None:
        del self._prompts[prompt.request_id]
        self._work.set()
        if prompt.request_id in self._handoffs:
            self._tasks.create_task(self._settle(prompt, stages))
        else:
            self._let_go(prompt, stages, None)

    async def _settle(self, prompt: Prompt, stages: PrefillStages | None) -> None:
        result = await self._handoffs[prompt.request_id].settled(self._clock)
        self.flight.transfer(self._clock.now(), prompt.request, result)
        if result.quarantine:
            _log.error(
                "pages quarantined: their transfer was never settled",
                extra={"fields": {"request": prompt.request_id, "pages": len(prompt.pages)}},
            )
            self.pool.quarantine(prompt.request_id)
        else:
            self.pool.settle(prompt.request_id)
        del self._handoffs[prompt.request_id]
        self._let_go(prompt, stages, result)

    def _let_go(self, prompt: Prompt, stages: PrefillStages | None, result: HandOffResult | None) -> None:
        quarantined = result is not None and result.quarantine
        if prompt.started and not quarantined:
            self.pool.release(prompt.request_id)
        self._work.set()  # pages may be free for a prompt that waits
        self._freed.set()
        self._membership.send(
            PrefillReleased(
                request_id=prompt.request_id,
                quarantined_pages=len(prompt.pages) if quarantined else 0,
                stages=result.add_to(stages, prompt.started_at)
                if result is not None and stages is not None
                else stages,
                error=prompt.error or (result.error if result is not None else None),
            )
        )

    async def _self_test(self, test: SelfTest) -> None:
        """Send pages of the real pool over the path that requests will take, and time it."""
        while self.pool.free_pages < test.pages:
            self._freed.clear()
            await self._freed.wait()
        owner = -test.transfer_id  # request ids are not negative
        pages = self.pool.reserve(owner, test.pages)
        self.pool.hold(owner)
        regions = self._engine.regions(pages)
        outbound = self._kv.send(test.transfer_id, test.peer, regions)
        handoff = HandOff(outbound, self._engine.layout.page_bytes, len(pages))
        handoff.pages_done(await self._thread.run(self._engine.digest, pages))
        handoff.complete(0, self._clock.now())
        result = await handoff.settled(self._clock)
        memcpy = await self._thread.run(self._engine.memcpy_gigabytes_per_s)
        if result.quarantine:
            self.pool.quarantine(owner)
        else:
            self.pool.settle(owner)
            self.pool.release(owner)
        self._work.set()
        self._freed.set()
        self._membership.send(
            SelfTestDone(
                transfer_id=test.transfer_id,
                quarantined_pages=len(pages) if result.quarantine else 0,
                nbytes=result.nbytes,
                transport=self._kv.transport_name(test.peer),
                memory=regions[0].kind,
                gigabytes_per_s=result.nbytes / result.seconds / 1e9 if result.seconds > 0 else 0.0,
                memcpy_gigabytes_per_s=memcpy,
                error=result.error,
            )
        )


def _row(chunk: Chunk[Prompt]) -> Row:
    prompt = chunk.prompt
    sample = SampleSpec(prompt.sampling, 0, prompt.tokens, (), prompt.matcher) if chunk.last else None
    return Row(prompt.tokens[chunk.start : chunk.end], chunk.start, prompt.pages, sample)


def _step(
    engine: EnginePort, rows: Sequence[Row], fresh_pages: Sequence[Sequence[int]]
) -> tuple[list[RowResult], list[bytes]]:
    """One step on the engine thread: compute, then digest the pages that this step completed."""
    results = engine.forward(rows)
    digests = engine.digest([page for pages in fresh_pages for page in pages])
    ends = [8 * sum(len(pages) for pages in fresh_pages[: i + 1]) for i in range(len(fresh_pages))]
    return results, [digests[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
