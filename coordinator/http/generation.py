"""How does an HTTP request for generation run, from its first token to its last byte?

One `Generation` per HTTP request, as an ASGI application: it starts the choices, and then either streams their chunks
or collects them. Whatever ends it (the answer, a failure, a client that went away or does not read), no choice of it
goes on afterwards. Loop thread only.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
from starlette.types import Message, Receive, Scope, Send

from coordinator.http.answers import Answer
from coordinator.http.counters import HttpCounters
from coordinator.http.errors import CLIENT_CLOSED_REQUEST, ApiError, of_failure
from coordinator.http.inbox import Inbox
from coordinator.ledger import Moments
from coordinator.service import Prepared, Service
from runtime.clock import Clock
from runtime.params import SamplingParams

_DONE = b"data: [DONE]\n\n"
_KEEP_ALIVE = b": keep-alive\n\n"
_SEED_BITS = (1 << 63) - 1
_STREAM_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


@dataclass(frozen=True, slots=True)
class Patience:
    keep_alive_s: float  # silence after which a stream gets a comment line
    stall_s: float  # a client that takes nothing for so long is cut off


class OpenAnswers:
    """The generations that have a client waiting; `tick` looks after their time."""

    def __init__(self, patience: Patience, clock: Clock) -> None:
        self._patience = patience
        self._clock = clock
        self._open: set[Generation] = set()

    def __len__(self) -> int:
        return len(self._open)

    def add(self, generation: "Generation") -> None:
        self._open.add(generation)

    def discard(self, generation: "Generation") -> None:
        self._open.discard(generation)

    def tick(self, now: float) -> None:
        for generation in list(self._open):
            generation.tick(now, self._patience)

    def now(self) -> float:
        return self._clock.now()


class Generation:
    """An ASGI application that answers one request."""

    def __init__(
        self,
        service: Service,
        prepared: Sequence[Prepared],
        answer: Answer,
        open_answers: OpenAnswers,
        counters: HttpCounters,
        received_at: float,
    ) -> None:
        self._received_at = received_at
        self._moments: list[Moments] = []  # by choice
        self._service = service
        self._prepared = prepared
        self._answer = answer
        self._open_answers = open_answers
        self._counters = counters
        self._inbox = Inbox()
        self._request_ids: list[int] = []
        self._sending_since: float | None = None
        self._last_sent = open_answers.now()
        self._cut_off: Callable[[], None] = lambda: None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._cut_off = scope["state"].get("abort", self._cut_off)
        watch = asyncio.get_running_loop().create_task(self._watch(receive))
        self._open_answers.add(self)
        streams = self._answer.books.asked.stream
        self._counters.open_streams += streams
        try:
            self._start()
            await (self._stream(send) if streams else self._collect(send))
            if self._inbox.gone and not self._answer.books.finished:
                self._counters.disconnects += 1
                scope["state"]["status"] = CLIENT_CLOSED_REQUEST
        finally:
            watch.cancel()
            self._counters.open_streams -= streams
            self._open_answers.discard(self)
            if not self._answer.books.finished:
                self._cancel()

    def tick(self, now: float, patience: Patience) -> None:
        """A client that does not take what is sent is cut off; one that hears nothing gets a sign of life."""
        if self._inbox.gone:
            return
        if self._sending_since is not None:
            if now - self._sending_since > patience.stall_s:
                self._counters.limit_hit("reader_stall")
                self._inbox.gone = True
                self._cut_off()
        elif now - self._last_sent > patience.keep_alive_s:
            self._last_sent = now
            self._inbox.quiet_too_long = True
            self._inbox.wake()

    # --- the service's side ------------------------------------------------------------------------------------------

    def _start(self) -> None:
        n = self._answer.books.asked.n
        for number in range(len(self._prepared) * n):
            one = self._prepared[number // n]
            sample = Prepared(one.request, one.prompt, _with_seed(one.sampling, number % n), one.tokenise_s)
            self._moments.append(Moments(self._answer.id, self._received_at))
            sink = self._inbox.sink(number, self._moments[number])
            self._request_ids.append(self._service.start(sample, sink))
            if self._inbox.failure is not None:
                return  # the queue is full: the rest would not fit either

    def _cancel(self) -> None:
        for request_id in self._request_ids:
            self._service.cancel(request_id)

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._inbox.gone = True
        self._inbox.wake()

    # --- the client's side -------------------------------------------------------------------------------------------

    async def _collect(self, send: Send) -> None:
        answer, inbox = self._answer, self._inbox
        while not answer.books.finished:
            if inbox.failure is not None:
                raise of_failure(inbox.failure.code, inbox.failure.message, inbox.failure.param)
            if inbox.gone:
                return
            for number, delta in inbox.take().items():
                answer.collect(number, delta)
            if not answer.books.finished:
                await inbox.wait()
        body = answer.whole()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        began = await self._send(send, _start(headers), _body(body, last=True))
        self._passed(began, dict.fromkeys(range(len(self._moments)), True))

    async def _stream(self, send: Send) -> None:
        """Until something is to be said, there is no status: a request that fails before its first token gets one."""
        answer, inbox = self._answer, self._inbox
        started = False
        while not inbox.gone:
            if inbox.failure is not None:
                error = of_failure(
                    inbox.failure.code,
                    inbox.failure.message,
                    inbox.failure.param,
                    tokens_sent=answer.books.sent_tokens,
                )
                if not started:
                    raise error
                await self._send(send, _body(_error_event(error) + _DONE, last=True))
                return
            taken = inbox.take()
            data = b"".join([answer.chunk(number, delta) for number, delta in taken.items()])
            over = answer.books.finished
            if over:
                data += (answer.usage_chunk() if answer.books.asked.include_usage else b"") + _DONE
            elif not data and inbox.quiet_too_long:
                data = _KEEP_ALIVE
            inbox.quiet_too_long = False
            if data:
                start = () if started else (_start(_STREAM_HEADERS),)
                started = True
                began = await self._send(send, *start, _body(data, last=over))
                self._passed(began, {number: delta.finish is not None for number, delta in taken.items()})
            if over:
                return
            await inbox.wait()

    def _passed(self, at: float, choices: Mapping[int, bool]) -> None:
        """Tokens of these choices were given to the socket; of those that are true, the last ones."""
        for number, last in choices.items():
            self._moments[number].passed(at, last=last)

    async def _send(self, send: Send, *messages: Message) -> float:
        """When it began. It waits while the client's buffers are full; meanwhile deltas merge in the inbox."""
        began = self._sending_since = self._open_answers.now()
        for message in messages:
            await send(message)
        self._last_sent, self._sending_since = self._open_answers.now(), None
        return began


def _start(headers: Iterable[tuple[bytes, bytes]]) -> Message:
    return {"type": "http.response.start", "status": 200, "headers": list(headers)}


def _body(data: bytes, *, last: bool) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": not last}


def _with_seed(sampling: SamplingParams, sample: int) -> SamplingParams:
    """Samples of one prompt draw from seeds that follow each other: reproducible, and different."""
    if sample == 0 or sampling.seed is None:
        return sampling
    return msgspec.structs.replace(sampling, seed=(sampling.seed + sample) & _SEED_BITS)


def _error_event(error: ApiError) -> bytes:
    return b"data: " + msgspec.json.encode({"error": error.as_dict()}) + b"\n\n"
