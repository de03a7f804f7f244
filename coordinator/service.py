"""How does a request get from a front into the machine, and its tokens back?

The only way in: the ZeroMQ front uses it, and any other front will. It tokenises, validates, feeds events to the pure
machine and executes its actions. Loop thread only; long prompts are tokenised on a helper thread.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import Callable

from coordinator import admission
from coordinator.config import CoordinatorConfig
from coordinator.events import (
    Action,
    CancelAsked,
    Emit,
    Event,
    Fail,
    Finish,
    StopStringFound,
    Submitted,
    Tell,
)
from coordinator.machine import Machine
from coordinator.streams import Sink, Stream
from coordinator.text import Text
from coordinator.validation import InvalidRequest, check_form, check_length, resolve
from runtime.clock import Clock
from runtime.description import ModelInfo
from transport.messages.client import GenerateRequest
from transport.messages.worker import ToWorker

_INLINE_CHARS = 16_384  # a text of this length tokenises in about a millisecond


class Service:
    """Owns the machine, the open streams and the model's description."""

    def __init__(
        self, config: CoordinatorConfig, text: Text, clock: Clock, tell: Callable[[str, ToWorker], None]
    ) -> None:
        self.config = config
        self.text = text
        self.model: ModelInfo | None = None  # known with the first worker
        limits = admission.AdmissionLimits(
            max_queued_requests=config.max_queued_requests,
            max_queued_tokens=config.max_queued_tokens,
            worker_absence_s=config.worker_absence_s,
            prefill_backlog_tokens=config.prefill_backlog_tokens,
        )
        self.machine = Machine(limits)
        self._clock = clock
        self._tell = tell
        self._streams: dict[int, Stream] = {}
        self._events: deque[Event] = deque()
        self._handling = False
        self._next_request_id = 0

    async def submit(self, request: GenerateRequest, sink: Sink) -> int:
        """Start a request; its events go to `sink`, possibly before this returns.

        Returns:
            The request's id, for `cancel` and the logs.

        Raises:
            InvalidRequest: it cannot be served; nothing was started.
        """
        if self.model is None:
            raise InvalidRequest("the server is still loading its model; try again", None, "overloaded")
        check_form(request, self.config.model)
        prompt = await self._tokenise(request, self.model)
        kv_tokens = admission.largest_decode_tokens(self.machine.cell) or self.model.max_model_len
        sampling = resolve(prompt, request.sampling, self.model, kv_tokens, secrets.randbits(63))
        request_id = self._next_request_id
        self._next_request_id += 1
        self._streams[request_id] = Stream(sink, self.text.decoder(), sampling, len(prompt))
        timeout_s = min(request.timeout_s or self.config.request_timeout_s, self.config.request_timeout_s)
        self.handle(Submitted(request_id, tuple(prompt), sampling, timeout_s))
        return request_id

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

    def handle(self, event: Event) -> None:
        """Feed the machine and execute what it decides; actions may cause events, which are handled in turn."""
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._events:
                for action in self.machine.handle(self._events.popleft(), self._clock.now()):
                    self._execute(action)
        finally:
            self._handling = False

    def _execute(self, action: Action) -> None:
        match action:
            case Tell(worker_id, message):
                self._tell(worker_id, message)
            case Emit(request_id, index, tokens):
                if self._streams[request_id].push(index, tokens):
                    self._events.append(StopStringFound(request_id))
            case Finish(request_id, reason, ledger):
                self._streams.pop(request_id).finish(reason, ledger)
            case Fail(request_id, code, message):
                self._streams.pop(request_id).fail(code, message)

    async def _tokenise(self, request: GenerateRequest, model: ModelInfo) -> list[int]:
        if request.prompt_token_ids is not None:
            return list(request.prompt_token_ids)
        try:
            chat = request.messages is not None
            text = self.text.render_chat(request.messages) if request.messages is not None else request.prompt or ""
            check_length(len(text), self.text.max_token_chars, model)
            if len(text) <= _INLINE_CHARS:
                return self.text.encode(text, add_special_tokens=not chat)
            return await asyncio.to_thread(self.text.encode, text, add_special_tokens=not chat)
        except ValueError as error:
            raise InvalidRequest(str(error), "messages" if request.messages is not None else "prompt") from error
