"""How does a request get from a front into the machine, and its tokens back?

The only way in: the ZeroMQ front uses it, and any other front will. It tokenises, validates, feeds events to the pure
machine, executes its actions and counts what happened. Loop thread only; long prompts are tokenised, and grammars
tried, on helper threads.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from coordinator import admission
from coordinator.config import CoordinatorConfig
from coordinator.events import (
    Action,
    CancelAsked,
    DecodeLetGo,
    Emit,
    Event,
    Fail,
    Finish,
    FirstTokenMade,
    PrefillLetGo,
    StopStringFound,
    Submitted,
    Tell,
    TokensMade,
)
from coordinator.flight import CellFlight
from coordinator.health import Health, health
from coordinator.ledger import Ended, new_ring
from coordinator.local_prefill import LocalPrefill
from coordinator.machine import Machine
from coordinator.streams import Sink, Stream
from coordinator.tally import Tally
from coordinator.text import Text
from coordinator.timelines import Timelines
from coordinator.validation import InvalidRequest, check_form, check_length, resolve
from runtime.clock import Clock
from runtime.description import ModelInfo
from runtime.params import FinishReason, SamplingParams
from transport.messages.client import GenerateRequest
from transport.messages.worker import Admit, Prefill, Serve, ToWorker

_INLINE_CHARS = 16_384  # a text of this length tokenises in about a millisecond
_PROGRESS = (FirstTokenMade, TokensMade, PrefillLetGo, DecodeLetGo)  # a worker has done something for a request


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that can be served: its prompt as tokens, its parameters with nothing left open."""

    request: GenerateRequest
    prompt: tuple[int, ...]
    sampling: SamplingParams
    tokenise_s: float = 0.0


class Service:
    """Owns the machine, the open streams and the model's description."""

    def __init__(
        self, config: CoordinatorConfig, text: Text, clock: Clock, tell: Callable[[str, ToWorker], None]
    ) -> None:
        self.config = config
        self.text = text
        self.model: ModelInfo | None = None  # known with the first worker
        limits = admission.AdmissionLimits(
            max_queued_requests=config.requests.max_queued_requests,
            max_queued_tokens=config.requests.max_queued_tokens,
            worker_absence_s=config.worker_absence_s,
            prefill_backlog_tokens=config.prefill_backlog_tokens,
            local=LocalPrefill(
                aggregated=config.aggregated,
                prompt_tokens=config.local_prompt_tokens,
                backlog_tokens=config.prefill_backlog_tokens if config.aggregated else config.local_backlog_tokens,
            ),
        )
        self.machine = Machine(limits)
        self.tally = Tally()
        self.ended = new_ring()
        self.flight = CellFlight(self.machine.cell)
        self.timelines = Timelines(self.flight, clock, tell)
        self._limits = limits
        self._clock = clock
        self._last_progress = clock.now()
        self._tell = tell
        self._streams: dict[int, Stream] = {}
        self._events: deque[Event] = deque()
        self._handling = False
        self._next_request_id = 0
        self._trying = asyncio.Lock()  # bad grammars, which take long, hold one helper thread and not all of them

    async def submit(self, request: GenerateRequest, sink: Sink) -> int:
        """`prepare`, then `start`."""
        return self.start(await self.prepare(request), sink)

    async def prepare(self, request: GenerateRequest) -> Prepared:
        """Tokenise and validate, a grammar last because that takes longest; nothing is started.

        Raises:
            InvalidRequest: it cannot be served.
        """
        began = self._clock.now()
        try:
            prepared = await self._prepare(request)
        except InvalidRequest as refusal:
            self.tally.refused(refusal.code)
            raise
        self.tally.prepared(self._clock.now() - began)
        return prepared

    async def _prepare(self, request: GenerateRequest) -> Prepared:
        model = self._known_model()
        check_form(request, self.config.model)
        began = self._clock.now()
        prompt = await self.tokenise(request)
        tokenise_s = self._clock.now() - began
        if request.truncate_prompt_tokens is not None:
            prompt = prompt[-request.truncate_prompt_tokens :]
        kv_tokens = admission.largest_decode_tokens(self.machine.cell) or model.max_model_len
        sampling = resolve(prompt, request.sampling, model, kv_tokens, secrets.randbits(63), self.config.requests)
        if sampling.grammar is not None:
            await self._check_grammar(sampling.grammar)
        return Prepared(request, tuple(prompt), sampling, tokenise_s)

    def start(self, prepared: Prepared, sink: Sink) -> int:
        """Start a request; its events go to `sink`, possibly before this returns.

        Returns:
            The request's id, for `cancel` and the logs.
        """
        request, prompt = prepared.request, prepared.prompt
        request_id = self._next_request_id
        self._next_request_id += 1
        decoder = self.text.decoder(skip_special_tokens=request.skip_special_tokens)
        self._streams[request_id] = Stream(
            sink, decoder, prepared.sampling, len(prompt), include_stop_string=request.include_stop_string
        )
        asked = prepared.sampling.max_tokens or 0  # `resolve` has set it
        now = self._clock.now()
        self.tally.started(request_id, len(prompt), asked, now)
        sink.moments.submitted_at, sink.moments.tokenise_s = now, prepared.tokenise_s
        longest_s = self.config.requests.request_timeout_s
        timeout_s = min(request.timeout_s or longest_s, longest_s)
        self.handle(Submitted(request_id, prompt, prepared.sampling, timeout_s))
        return request_id

    async def tokenise(self, request: GenerateRequest) -> list[int]:
        """The prompt of a request as the model will see it.

        Raises:
            InvalidRequest: it has no such form, or is longer than the context could hold.
        """
        model = self._known_model()
        if request.prompt_token_ids is not None:
            return list(request.prompt_token_ids)
        chat = request.messages is not None
        try:
            text = (
                self.text.render_chat(request.messages, request.tools, request.template_arguments)
                if request.messages is not None
                else request.prompt or ""
            )
            check_length(len(text), self.text.max_token_chars, model)
            special = request.add_special_tokens and not chat  # a template writes them itself
            if len(text) <= _INLINE_CHARS:
                return self.text.encode(text, add_special_tokens=special)
            return await asyncio.to_thread(self.text.encode, text, add_special_tokens=special)
        except ValueError as error:
            raise InvalidRequest(str(error), "messages" if chat else "prompt") from error

    async def _check_grammar(self, grammar: str) -> None:
        try:
            async with self._trying:
                await asyncio.to_thread(self.text.check_grammar, grammar)
        except ValueError as error:
            raise InvalidRequest(str(error), "grammar") from error

    def cancel(self, request_id: int) -> None:
        self.handle(CancelAsked(request_id))

    @property
    def in_flight(self) -> int:
        """Requests that a client still waits for."""
        return len(self._streams)

    @property
    def idle(self) -> bool:
        """No request anywhere, not even one whose pages a worker still holds."""
        return not self.machine.cell.requests

    def health(self) -> Health:
        """Whether tokens can be expected of this cell now."""
        return health(
            self.machine.cell,
            self._clock.now(),
            self._last_progress,
            self._limits,
            loading=self.model is None,
            stall_s=self.config.stall_s,
        )

    @property
    def progress_age_s(self) -> float:
        """How long ago a worker last made a token or let go of a request; since the start, if none ever did."""
        return self._clock.now() - self._last_progress

    def handle(self, event: Event) -> None:
        """Feed the machine and execute what it decides; actions may cause events, which are handled in turn."""
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._events:
                event, now = self._events.popleft(), self._clock.now()
                if isinstance(event, _PROGRESS):
                    self._last_progress = now
                actions = self.machine.handle(event, now)
                self.flight.saw(event, actions, now)
                for action in actions:
                    self._execute(action, now)
        finally:
            self._handling = False

    def _execute(self, action: Action, now: float) -> None:
        match action:
            case Tell(worker_id, message):
                if isinstance(message, Serve):
                    self.tally.computed_locally(message.request_id)
                if isinstance(message, Admit | Prefill | Serve) and message.request_id in self._streams:
                    moments = self._streams[message.request_id].sink.moments
                    moments.ordered(self._clock.now() - now, admit=isinstance(message, Admit))
                self._tell(worker_id, message)
            case Emit(request_id, index, tokens, finish):
                stream = self._streams[request_id]
                stopped = stream.push(index, tokens, finish)
                if stopped:
                    self._events.append(StopStringFound(request_id))
                if index == 0 or stopped or finish is not None:
                    stream.sink.moments.token(now, self._clock.now(), last=stopped or finish is not None)
                self.tally.delivered(request_id, stream.delivered, now)
            case Finish(request_id, reason, ledger):
                stream = self._streams.pop(request_id)
                end = stream.finish(reason, ledger)
                self.tally.finished(request_id, end)
                if end.reason is not FinishReason.CANCELLED:
                    self.ended.append(
                        Ended(request_id, end.prompt_tokens, end.completion_tokens, now, ledger, stream.sink.moments)
                    )
            case Fail(request_id, code, message):
                self.tally.failed(request_id, code)
                self._streams.pop(request_id).fail(code, message)

    def _known_model(self) -> ModelInfo:
        if self.model is None:
            raise InvalidRequest("the server is still loading its model; try again", None, "loading")
        return self.model
