"""How does a decode worker live?

The I/O shell of `intake` (how a request gets in), `running` (who is in the next step), `local` (which tokens of its own
prompts are) and `steps` (how a device finds its next step). One loop thread runs all of this and the KV port; one
engine thread computes. The end of a transfer or a new prompt wakes the decode loop; nothing polls.

Life of a request here: Admit received -> `_admit` reserves pages and posts receives -> `_take_in` waits and verifies
-> `running.join` -> one token per step -> `_leave` -> Released. Or: Serve received -> `_serve` reserves pages -> one
chunk per step -> `running.join` with token 1, and on as above. Cancel is legal at every arrow: before the pages are in,
it waits for the transfer to settle; in a step, for the step to end. Whoever has left the batch keeps its pages until no
step that is under way writes to them.
"""

import asyncio
from collections.abc import Sequence

from decode_worker.config import DecodeConfig
from decode_worker.flight import DecodeFlight
from decode_worker.intake import take_in
from decode_worker.local import LocalPrompt, LocalPrompts, StepBudget, chunk_row
from decode_worker.running import Running, RunningSequence, StopLimits, rows
from decode_worker.steps import BackToBack, Step
from engine.chunking import Chunk
from engine.pages import PageAllocator
from engine.port import EnginePort, RowResult
from engine.thread import EngineThread
from runtime import logs
from runtime.clock import Clock
from runtime.stages import DecodeStages, PrefillStages
from transport.kv import KvPort
from transport.membership import Membership
from transport.messages.worker import (
    Admit,
    AskRecording,
    CancelRequest,
    Heartbeat,
    Hello,
    PeerGone,
    Released,
    SelfTest,
    SelfTestDone,
    Serve,
    Tokens,
    ToWorker,
)
from transport.playback import Playback

_log = logs.get("decode")


class DecodeWorker:
    """Owns the sequences that decode here, their pages and the stop decision."""

    def __init__(
        self,
        engine: EnginePort,
        thread: EngineThread,
        kv: KvPort,
        membership: Membership,
        clock: Clock,
        config: DecodeConfig,
    ) -> None:
        self._engine = engine
        self._kv = kv
        self._membership = membership
        self._thread = thread
        self._clock = clock
        self.pool = PageAllocator(engine.total_pages)
        self.flight = DecodeFlight()
        self._playback = Playback(self.flight, clock)
        self._running = Running(config.max_batch, StopLimits(engine.eos_token_ids, engine.max_model_len))
        self._local = LocalPrompts(StepBudget(config.max_batch, config.chunk_tokens, config.mixed_chunk_tokens))
        self._back_to_back = BackToBack(engine, thread, clock, self._plan_behind, self._apply)
        self._arriving: dict[int, Admit] = {}
        self._cancelled: set[int] = set()  # cancelled while their pages arrive
        self._under_way: list[Step] = []
        self._left: list[RunningSequence] = []  # the batch, but a step under way still writes to their pages
        self._work = asyncio.Event()
        self._tasks = asyncio.TaskGroup()

    async def run(self, hello: Hello, stop: asyncio.Event) -> None:
        """Until the coordinator says Shutdown or `stop` is set. Anything that raises in here ends the process."""
        async with self._tasks:
            decode = self._tasks.create_task(self._decode(), name="decode")
            await self._membership.serve(hello, self.on_message, self._heartbeat, stop)
            decode.cancel()

    # --- messages ----------------------------------------------------------------------------------------------------

    def on_message(self, message: ToWorker) -> None:
        match message:
            case Admit():
                self._admit(message)
            case Serve():
                self._serve(message)
            case CancelRequest(request_id=request_id):
                self._cancel(request_id)
            case PeerGone(worker_id=worker_id, epoch=epoch):
                self._kv.peer_gone(worker_id, epoch)
            case SelfTest():
                self._tasks.create_task(self._self_test(message))
            case AskRecording():
                self._membership.send(self._playback.answer(message))
            case _:
                raise AssertionError(f"a decode worker was sent {type(message).__name__}")

    def _heartbeat(self) -> Heartbeat:
        self.pool.check()
        self._record_levels(self._clock.now())
        return Heartbeat(
            free_pages=self.pool.free_pages,
            reserved_pages=self.pool.reserved_pages,
            quarantined_pages=self.pool.quarantined_pages,
            running=len(self._running.sequences) + len(self._local.prompts),
            waiting=len(self._arriving),
        )

    def _admit(self, admit: Admit) -> None:
        """The coordinator spends our pages, so the reservation cannot fail; if it does, an invariant is broken."""
        admitted_at = self._clock.now()
        pages = self.pool.reserve(admit.request_id, admit.pages)
        self.pool.hold(admit.request_id)
        self._arriving[admit.request_id] = admit
        self._kv.connect(admit.peer)
        self._tasks.create_task(self._take_in(admit, pages, admitted_at))

    def _serve(self, serve: Serve) -> None:
        """As in `_admit`, the reservation cannot fail."""
        arrived_at = self._clock.now()
        grammar = serve.sampling.grammar
        self._local.accept(
            LocalPrompt(
                request=serve,
                pages=self.pool.reserve(serve.request_id, serve.pages),
                arrived_at=arrived_at,
                matcher=self._engine.matcher(grammar) if grammar is not None else None,
            )
        )
        self._work.set()

    def _cancel(self, request_id: int) -> None:
        if request_id in self._arriving:
            self._cancelled.add(request_id)
        elif self._is_in_step(request_id):
            known = self._running.sequences.get(request_id) or self._local.prompts.get(request_id)
            if known is not None:  # else it has left already
                known.cancelled = True
        elif (sequence := self._running.drop_cancelled(request_id)) is not None:
            self._end(sequence)
        elif self._local.drop_cancelled(request_id) is not None:
            self._leave(request_id, None)

    def _is_in_step(self, request_id: int) -> bool:
        return any(step.holds(request_id) for step in self._under_way)

    # --- arriving ----------------------------------------------------------------------------------------------------

    async def _take_in(self, admit: Admit, pages: tuple[int, ...], admitted_at: float) -> None:
        prompt_pages = pages[: self._engine.layout.pages_for(len(admit.prompt))]
        inbound = self._kv.expect(admit.transfer_id, admit.peer, self._engine.regions(prompt_pages))
        received = await take_in(
            admit, inbound, prompt_pages, self._engine, self._thread, self._clock, started=admitted_at
        )
        del self._arriving[admit.request_id]
        cancelled = admit.request_id in self._cancelled
        self._cancelled.discard(admit.request_id)
        if received.quarantine:
            self.pool.quarantine(admit.request_id)
        else:
            self.pool.settle(admit.request_id)
        if received.first_token is None or cancelled:
            if received.error is not None and not cancelled:
                _log.warning("hand-off failed", extra={"fields": {"request": admit.request_id, "why": received.error}})
            stages = received.stages
            self.flight.not_joined(self._clock.now(), admit.request_id, len(pages), stages)
            quarantined = len(pages) if received.quarantine else 0
            self._leave(admit.request_id, stages, None if cancelled else received.error, quarantined)
            return
        grammar = admit.sampling.grammar
        self._running.join(
            RunningSequence(
                request=admit,
                pages=pages,
                output=[received.first_token],
                intake=received.stages,
                joined_at=received.ended_at,
                matcher=self._engine.matcher(grammar) if grammar is not None else None,
            )
        )
        self._work.set()

    # --- decoding ----------------------------------------------------------------------------------------------------

    async def _decode(self) -> None:
        while True:
            # Pages that arrived during a step are checked before the next one: they wait in that step's shadow anyway,
            # and a sequence that is not in the running batch when a step is planned waits for the whole of it.
            await self._thread.caught_up()
            step = self._plan()
            if step is None:
                self._work.clear()
                await self._work.wait()
            elif self._engine.runs_ahead and not step.chunks:
                await self._back_to_back.run(step)
            else:
                results, seconds = await self._thread.run_timed(self._clock, self._engine.forward, step.rows)
                self._apply(step, results, step.began, self._clock.now(), seconds)

    def _plan(self) -> Step | None:
        """The next step, while none is under way; None where there is nothing to compute."""
        now = self._clock.now()
        sequences = self._running.plan_step(now)
        chunks = self._local.plan_chunks(len(sequences), now)
        self._record_levels(now)
        return self._step(sequences, chunks, now) if sequences or chunks else None

    def _plan_behind(self, under_way: Step) -> Step | None:
        """The step behind one that is under way; None if that has to end first, or nothing is left to compute."""
        now = self._clock.now()
        sequences = self._running.next_step(under_way.sequences)
        if not sequences or self._local.has_chunks(len(sequences)):
            return None
        self._running.start(sequences, now)
        self._record_levels(now)
        return self._step(sequences, (), now, under_way.sequences)

    def _step(
        self,
        sequences: Sequence[RunningSequence],
        chunks: Sequence[Chunk[LocalPrompt]],
        now: float,
        under_way: Sequence[RunningSequence] = (),
    ) -> Step:
        joined = self.flight.joining(now, sequences)
        step = Step(sequences, chunks, [*rows(sequences, under_way), *map(chunk_row, chunks)], now, joined)
        self._under_way.append(step)
        return step

    def _record_levels(self, now: float) -> None:
        running, local = len(self._running.sequences), len(self._local.prompts)
        self.flight.levels(now, self.pool, running, len(self._arriving), local)

    def _apply(
        self, step: Step, results: Sequence[RowResult], started: float, ended: float, seconds: float = 0.0
    ) -> None:
        """Tell of a step's tokens and let go who leaves with it. `seconds`: on the engine thread; chunks tell of it."""
        self._under_way.remove(step)
        decoding = len(step.sequences)
        self.flight.step(started, ended, decoding, step.chunks, step.joined)
        begun, given_up = self._local.apply(step.chunks, results[decoding:], ended, seconds)
        for sequence, _ in begun:
            self._running.join(sequence)
        drawn = [result for result in results[:decoding] if result is not None]
        told, leaving = self._running.apply(
            [*step.sequences, *(sequence for sequence, _ in begun)], [*drawn, *(result for _, result in begun)], ended
        )
        sent_at = self._clock.now()  # before the send: after it others may be at work while we wait for a core
        if told:
            self._membership.send(Tokens(steps=tuple(told)))
        for sequence in leaving:
            if not sequence.cancelled:  # its last token left after an earlier step, or with the prefill worker
                sequence.sent_at = sent_at
        self._end_those_who_left(leaving)
        for prompt in given_up:
            self._leave(prompt.request_id, None)

    # --- letting go --------------------------------------------------------------------------------------------------

    def _end_those_who_left(self, leaving: Sequence[RunningSequence]) -> None:
        """Unless a step that is under way still writes to their pages: its end ends them."""
        left, self._left = [*self._left, *leaving], []
        for sequence in left:
            if self._is_in_step(sequence.request_id):
                self._left.append(sequence)
            else:
                self._end(sequence)

    def _end(self, sequence: RunningSequence) -> None:
        self.flight.left(self._clock.now(), sequence)
        if sequence.error is not None:
            fields = {"request": sequence.request_id, "why": sequence.error}
            _log.warning("no next token", extra={"fields": fields})
        self._leave(sequence.request_id, sequence.stages(), sequence.error, prefill=sequence.prefill)

    def _leave(
        self,
        request_id: int,
        stages: DecodeStages | None,
        error: str | None = None,
        quarantined_pages: int = 0,
        prefill: PrefillStages | None = None,
    ) -> None:
        if quarantined_pages == 0:
            self.pool.release(request_id)
        self._membership.send(
            Released(
                request_id=request_id,
                quarantined_pages=quarantined_pages,
                stages=stages,
                error=error,
                prefill=prefill,
            )
        )

    async def _self_test(self, test: SelfTest) -> None:
        """The receiving half of a self-test; the prefill worker measures it."""
        owner = -test.transfer_id  # request ids are not negative
        pages = self.pool.reserve(owner, test.pages)
        self.pool.hold(owner)
        self._kv.connect(test.peer)
        outcome = await self._kv.expect(test.transfer_id, test.peer, self._engine.regions(pages)).settled()
        if outcome.ok and await self._thread.run(self._engine.digest, pages) != outcome.digests:
            raise AssertionError(f"the self-test from {test.peer.worker_id} arrived damaged")
        if outcome.quarantine:
            self.pool.quarantine(owner)
        else:
            self.pool.settle(owner)
            self.pool.release(owner)
        self._membership.send(
            SelfTestDone(
                transfer_id=test.transfer_id,
                quarantined_pages=len(pages) if outcome.quarantine else 0,
                error=None if outcome.ok else outcome.error,
            )
        )
