"""How does a Python program stream tokens from a running cell?

    async with StreamingClient(endpoint) as client:
        async for token in client.generate("Once upon a time", sampling=SamplingParams(max_tokens=32)):
            print(token.text, end="", flush=True)

One connection, any number of requests at once. All latencies are taken on this process's clock (design brief, section
6): TTFT is send -> first token here, ITL the gap between two tokens here.
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from runtime.clock import Clock, SystemClock
from runtime.params import FinishReason, SamplingParams
from runtime.stages import Ledger
from runtime.tokens import TokenLogprobs
from transport import codec
from transport.control import Context, ControlClient, new_context
from transport.errors import ProtocolError
from transport.messages.client import (
    AnswerLedger,
    AskLedgers,
    AskStatus,
    Cancel,
    CellStatus,
    ChatMessage,
    ClientHello,
    Delta,
    Done,
    Failed,
    GenerateRequest,
    Goodbye,
    Ledgers,
    Ping,
    Pong,
    Submit,
    TimelineEnd,
    TimelinePart,
    ToClient,
    ToCoordinator,
    Welcome,
)
from transport.messages.common import MAX_REASON_CHARS, PROTOCOL_VERSION

A = TypeVar("A", CellStatus, Ledgers)

_HELLO_INTERVAL_S = 1.0

_FromServer = Delta | Done | Failed | Goodbye


class ServerUnreachable(Exception):
    """Nobody serves at this endpoint, or the server has gone."""


class RequestFailed(Exception):
    """The server ended the request with an error; `code` is that of `transport.messages.client.Failed`."""

    def __init__(self, code: str, message: str, param: str | None) -> None:
        super().__init__(f"{message} [{code}]")
        self.code = code
        self.message = message
        self.param = param


@dataclass(frozen=True, slots=True)
class StreamedToken:
    """One token. `text` may be empty while a code point or a possible stop string is incomplete."""

    index: int
    token_id: int
    text: str
    since_send_s: float  # send -> this token at the client
    gap_s: float  # since the token before it; since the send for the first
    logprobs: TokenLogprobs | None = None


@dataclass(slots=True)
class Completion:
    """What a request has come to; complete once its iterator has ended."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    gaps_s: list[float] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    prompt_tokens: int = 0
    total_s: float = 0.0  # send -> end at the client
    ledger: Ledger | None = None

    @property
    def ttft_s(self) -> float:
        return self.gaps_s[0] if self.gaps_s else 0.0

    @property
    def tpot_s(self) -> float:
        """(last token - first token) / (n - 1); 0 with fewer than two tokens."""
        gaps = self.gaps_s[1:]
        return sum(gaps) / len(gaps) if gaps else 0.0

    @property
    def handoff_gap_s(self) -> float:
        """Token 1 -> token 2."""
        return self.gaps_s[1] if len(self.gaps_s) > 1 else 0.0


class Generation:
    """An async iterator over the tokens of one request; `completion` fills while it is iterated.

    Leaving the iteration early (`break`, an exception, a cancelled task) does not cancel the request by itself: use
    `async with`, or call `cancel()`.
    """

    def __init__(self, client: "StreamingClient", request_id: str, clock: Clock) -> None:
        self._client = client
        self._id = request_id
        self._clock = clock
        self._sent_at = clock.now()
        self._last_at = self._sent_at
        self._inbox: asyncio.Queue[tuple[float, _FromServer]] = asyncio.Queue()
        self._ready: list[StreamedToken] = []
        self._ended = False
        self.completion = Completion()

    def __aiter__(self) -> AsyncIterator[StreamedToken]:
        return self

    async def __anext__(self) -> StreamedToken:
        """
        Raises:
            RequestFailed: the server ended the request with an error.
            ServerUnreachable: the server has gone.
        """
        while not self._ready and not self._ended:
            self._take(*await self._inbox.get())
        if not self._ready:
            raise StopAsyncIteration
        return self._ready.pop(0)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Ask the server to stop; the iteration ends with what has arrived. Without effect on an ended request."""
        self._client.cancel(self._id)

    async def finish(self) -> Completion:
        """Take all tokens that are still to come."""
        async for _ in self:
            pass
        return self.completion

    def receive(self, message: _FromServer) -> None:
        """Called by the client's socket; the time of arrival is taken here, not when somebody iterates."""
        self._inbox.put_nowait((self._clock.now(), message))

    def _take(self, now: float, message: _FromServer) -> None:
        match message:
            case Delta():
                self._take_delta(message, now)
            case Done():
                self._end(now)
                done = self.completion
                done.text += message.text
                done.finish_reason, done.stop_reason = message.finish_reason, message.stop_reason
                done.prompt_tokens, done.ledger = message.prompt_tokens, message.ledger
            case Failed(code=code, message=text, param=param):
                self._end(now)
                raise RequestFailed(code, text, param)
            case Goodbye(reason=reason):
                self._end(now)
                raise ServerUnreachable(reason)

    def _take_delta(self, delta: Delta, now: float) -> None:
        if delta.index != len(self.completion.token_ids):
            raise AssertionError(f"token {delta.index} arrived after {len(self.completion.token_ids)} tokens")
        self.completion.text += delta.text
        for offset, token_id in enumerate(delta.token_ids):
            logprobs = delta.logprobs[offset] if delta.logprobs else None
            token = StreamedToken(
                index=delta.index + offset,
                token_id=token_id,
                text=delta.text if offset == len(delta.token_ids) - 1 else "",
                since_send_s=now - self._sent_at,
                gap_s=now - self._last_at,
                logprobs=logprobs,
            )
            self._last_at = now
            self.completion.token_ids.append(token_id)
            self.completion.gaps_s.append(token.gap_s)
            if logprobs is not None:
                self.completion.logprobs.append(logprobs)
            self._ready.append(token)

    def _end(self, now: float) -> None:
        self._ended = True
        self.completion.total_s = now - self._sent_at


class StreamingClient:
    """A connection to a cell. Use it as `async with`."""

    def __init__(self, endpoint: str, *, connect_timeout_s: float = 10.0, clock: Clock | None = None) -> None:
        self._endpoint = endpoint
        self._connect_timeout_s = connect_timeout_s
        self._clock = clock or SystemClock()
        self._codec = codec.client_side()
        self._generations: dict[str, Generation] = {}
        self._ids = (f"r{number}" for number in itertools.count())
        self._asked: dict[type, list[asyncio.Future[Any]]] = {}  # by the message that answers it
        self.timelines: asyncio.Queue[TimelinePart | TimelineEnd] = asyncio.Queue()  # for `launch.trace`
        self._last_heard = 0.0
        self._goodbye: str | None = None
        self._context: Context | None = None
        self._link: ControlClient | None = None
        self._keepalive: asyncio.Task[None] | None = None
        self.server: Welcome | None = None

    async def __aenter__(self) -> Self:
        """
        Raises:
            ServerUnreachable: no answer within `connect_timeout_s`, or the server refuses this client.
        """
        self.server = self._goodbye = None
        self._context = new_context()
        self._welcomed = asyncio.Event()
        self._link = ControlClient(self._context, self._endpoint, self._received)
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await self._hello()
        except TimeoutError as error:
            hint = "is `kvrelay up` running, and ready?"
            self._lose(f"no answer from {self._endpoint} in {self._connect_timeout_s:g} s: {hint}")
            raise ServerUnreachable(self._goodbye) from error
        finally:
            if self.server is None:
                self._close()
        self._keepalive = asyncio.get_running_loop().create_task(self._keep_alive())
        return self

    async def _hello(self) -> None:
        """Until the server, which may still be loading its model, has welcomed us; it forgets who is silent."""
        while not self._welcomed.is_set():
            self.send(ClientHello(protocol=PROTOCOL_VERSION))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_HELLO_INTERVAL_S):
                    await self._welcomed.wait()
        if self._goodbye is not None:
            raise ServerUnreachable(self._goodbye)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._link is not None:
            for generation in list(self._generations.values()):
                generation.cancel()
        self._close()

    def abandon(self) -> None:
        """Drop the connection without a word, as a killed process would."""
        self._close()

    def generate(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[tuple[str, str]] | None = None,
        prompt_token_ids: Sequence[int] | None = None,
        sampling: SamplingParams | None = None,
        model: str | None = None,
        timeout_s: float | None = None,
    ) -> Generation:
        """Start a request; iterate over the result for its tokens.

        Args:
            prompt: text to continue, as it is. Give exactly one of the three prompts.
            messages: (role, content) pairs, rendered with the model's chat template.
            prompt_token_ids: token ids to continue.
            sampling: how to choose tokens; None for the defaults of `SamplingParams`.
            timeout_s: the server ends the request with an error after this time.
        """
        request = GenerateRequest(
            prompt=prompt,
            prompt_token_ids=tuple(prompt_token_ids) if prompt_token_ids is not None else None,
            messages=msgspec.convert(
                [{"role": role, "content": content} for role, content in messages], tuple[ChatMessage, ...]
            )
            if messages is not None
            else None,
            model=model,
            sampling=sampling or SamplingParams(),
            timeout_s=timeout_s,
        )
        return self.submit_raw(msgspec.msgpack.encode(request))

    def submit_raw(self, request: bytes) -> Generation:
        """Send an encoded `GenerateRequest` as it is; the server checks it. For tests of bad input."""
        request_id = next(self._ids)
        generation = Generation(self, request_id, self._clock)
        self._generations[request_id] = generation
        self.send(Submit(id=request_id, request=msgspec.Raw(request)))
        return generation

    async def status(self) -> CellStatus:
        """Pages and requests of every worker; raises `ServerUnreachable` without an answer in the connect timeout."""
        return await self._ask(AskStatus(), CellStatus)

    async def ledgers(self, skip: int = 0) -> tuple[AnswerLedger, ...]:
        """A page of answers of the cell, the newest but `skip` and the newest of them last; raises as `status` does."""
        return (await self._ask(AskLedgers(skip=skip), Ledgers)).answers

    async def _ask(self, question: AskStatus | AskLedgers, kind: type[A]) -> A:
        waiting: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._asked.setdefault(kind, []).append(waiting)
        self.send(question)
        try:
            return await asyncio.wait_for(waiting, self._connect_timeout_s)
        except TimeoutError as error:
            raise ServerUnreachable(f"{self._endpoint} does not answer {type(question).__name__}") from error

    def cancel(self, request_id: str) -> None:
        if request_id in self._generations:
            self.send(Cancel(id=request_id))

    def send(self, message: ToCoordinator) -> None:
        if self._link is None:
            raise ServerUnreachable("the client is not connected; use it as `async with StreamingClient(...)`")
        self._link.send(self._codec.encode(message))

    def _received(self, data: bytes) -> None:
        self._last_heard = self._clock.now()
        try:
            message: ToClient = self._codec.decode(data)
        except ProtocolError as error:
            self._lose(f"{self._endpoint} does not speak this protocol: {error}")
            return
        match message:
            case Welcome():
                self.server = message
                self._welcomed.set()
            case Goodbye(reason=reason):
                self._lose(reason)
            case Pong():
                pass
            case CellStatus() | Ledgers():
                for waiting in self._asked.pop(type(message), ()):
                    if not waiting.done():
                        waiting.set_result(message)
            case TimelinePart() | TimelineEnd():
                self.timelines.put_nowait(message)
            case Delta():
                if message.id in self._generations:
                    self._generations[message.id].receive(message)
            case Done() | Failed():
                generation = self._generations.pop(message.id, None)
                if generation is not None:
                    generation.receive(message)

    async def _keep_alive(self) -> None:
        """Tell the server that we live, and notice when it does not."""
        timeout_s = self.server.client_timeout_s if self.server is not None else self._connect_timeout_s
        while True:
            self.send(Ping())
            await self._clock.sleep(timeout_s / 4)
            if self._clock.now() - self._last_heard > timeout_s:
                self._lose(f"the server at {self._endpoint} has been silent for {timeout_s:g} s")

    def _lose(self, reason: str) -> None:
        self._goodbye = reason
        self._welcomed.set()
        generations, self._generations = self._generations, {}
        for generation in generations.values():
            generation.receive(Goodbye(reason=reason[:MAX_REASON_CHARS]))

    def _close(self) -> None:
        self._lose("this client has closed its connection")
        if self._keepalive is not None:
            self._keepalive.cancel()
        if self._link is not None:
            self._link.close()
            self._link = None
        if self._context is not None:
            self._context.term()
            self._context = None
