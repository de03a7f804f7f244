"""How do ZeroMQ clients reach the service?

One ROUTER socket. Each client has an outbox in which the deltas of one request merge while the client does not read, so
a slow client costs at most the tokens of its requests and delays nobody else. A client that is silent, unreachable or
has not read for `client_stall_s` is dropped and its requests are cancelled. Loop thread only.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

import msgspec

from coordinator.ledger import Moments
from coordinator.service import Service
from coordinator.streams import StreamDelta, StreamEnd
from coordinator.validation import InvalidRequest
from runtime import logs
from runtime.clock import Clock
from runtime.process import fail_loudly
from transport import codec
from transport.control import Context, ControlServer, Sent
from transport.errors import ProtocolError
from transport.liveness import Liveness
from transport.messages.client import (
    LEDGERS_AT_ONCE,
    AnswerLedger,
    AskLedgers,
    AskStatus,
    AskTimeline,
    Cancel,
    CellStatus,
    ClientHello,
    Delta,
    Done,
    Failed,
    FailureCode,
    Goodbye,
    Ledgers,
    Ping,
    Pong,
    Submit,
    ToClient,
    Welcome,
    WorkerStatus,
)
from transport.messages.common import MAX_REASON_CHARS, PROTOCOL_VERSION

_HELLO_FIRST = "say ClientHello first"
_log = logs.get("clients")


@dataclass(slots=True)
class _Pending:
    """What one request still has to tell its client: merged tokens, then at most one last word."""

    moments: Moments
    delta: Delta | None = None
    last: Done | Failed | None = None


@dataclass(slots=True)
class _OpenRequest:
    request_id: int | None = None  # None while it is tokenised
    cancelled: bool = False


@dataclass(slots=True)
class _Client:
    identity: bytes
    requests: dict[str, _OpenRequest] = field(default_factory=dict)  # by the client's id
    outbox: "OrderedDict[str, _Pending]" = field(default_factory=OrderedDict)
    stalled_since: float | None = None


class ClientLink:
    def __init__(
        self,
        context: Context,
        service: Service,
        clock: Clock,
        worker_status: Callable[[], tuple[WorkerStatus, ...]],
    ) -> None:
        config = service.config
        self._service = service
        self._clock = clock
        self._config = config
        self._worker_status = worker_status
        self._codec = codec.coordinator_side_of_client_link()
        self._clients: dict[bytes, _Client] = {}
        self._waiting: set[bytes] = set()  # said Hello before the cell was ready
        self._asked: dict[bytes, int] = {}  # who waits for ledgers, and how many of the newest it leaves out
        self._liveness: Liveness[bytes] = Liveness(config.client_timeout_s)
        self._dirty: set[bytes] = set()
        self._flush_scheduled = False
        self._ready = False
        self._submits: set[asyncio.Task[None]] = set()
        self._server = ControlServer(context, config.client_endpoint, self._received)
        self.protocol_errors = 0

    def ready(self) -> None:
        """The cell can serve: welcome whoever waits for it."""
        self._ready = True
        for identity in self._waiting:
            self._send(identity, self._welcome())
        self._waiting.clear()

    def tick(self, now: float) -> None:
        for identity in self._liveness.expired(now):
            self._drop(identity, "silent")
        for client in list(self._clients.values()):
            if client.stalled_since is not None:
                self._dirty.add(client.identity)
                if now - client.stalled_since > self._config.client_stall_s:
                    self._drop(client.identity, "does not read")
        self._flush()
        if self._asked:
            self._tell_ledgers()

    def close(self) -> None:
        self._flush()
        self._server.close()

    # --- from clients ------------------------------------------------------------------------------------------------

    def _received(self, identity: bytes, data: bytes) -> None:
        now = self._clock.now()
        self._liveness.saw(identity, now)
        try:
            message = self._codec.decode(data)
        except ProtocolError as error:
            self.protocol_errors += 1
            self._send(identity, Goodbye(reason=f"not a message of this protocol: {error}"))
            return
        match message:
            case ClientHello(protocol=protocol):
                self._hello(identity, protocol)
            case Submit():
                self._submit(identity, message, now)
            case Cancel(id=client_id):
                self._cancel(identity, client_id)
            case Ping():
                dropped = Goodbye(reason="this connection was dropped, and its requests with it; say ClientHello again")
                self._send(identity, Pong() if identity in self._clients else dropped)
            case AskStatus():
                self._send(identity, self._status())
            case AskLedgers() | AskTimeline() if identity not in self._clients:
                self._send(identity, Goodbye(reason=_HELLO_FIRST))
            case AskLedgers(skip=skip):
                self._asked[identity] = skip  # `tick` answers
            case AskTimeline(last_s=last_s):
                self._service.timelines.ask(last_s, self._worker_status, partial(self._send, identity))

    def _hello(self, identity: bytes, protocol: int) -> None:
        if protocol != PROTOCOL_VERSION:
            reason = f"this server speaks protocol {PROTOCOL_VERSION}, the client {protocol}: use the same release"
            self._send(identity, Goodbye(reason=reason))
            return
        self._clients.setdefault(identity, _Client(identity))
        if self._ready:
            self._send(identity, self._welcome())
        else:
            self._waiting.add(identity)

    def _submit(self, identity: bytes, message: Submit, now: float) -> None:
        client = self._clients.get(identity)
        if client is None:
            self._send(identity, Goodbye(reason=_HELLO_FIRST))
        elif message.id in client.requests:
            self._send(identity, Goodbye(reason=f"the request id {message.id!r} is in use"))
            self._drop(identity, "reused a request id")
        elif len(client.requests) >= self._config.max_requests_per_client:
            limit = self._config.max_requests_per_client
            self._send(identity, Failed(id=message.id, code="overloaded", message=f"{limit} requests are in flight"))
        else:
            opened = client.requests[message.id] = _OpenRequest()
            task = asyncio.get_running_loop().create_task(self._start(client, message, opened, now))
            self._submits.add(task)
            task.add_done_callback(self._started)

    def _started(self, task: asyncio.Task[None]) -> None:
        self._submits.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            fail_loudly(error)  # what a client may do wrong has been answered: this is a broken invariant

    async def _start(self, client: _Client, message: Submit, opened: _OpenRequest, received_at: float) -> None:
        sink = _ClientSink(self, client, Moments(message.id, received_at))
        try:
            request = codec.generate_request(message.request)
            opened.request_id = await self._service.submit(request, sink)
        except ProtocolError as error:
            sink.failed("invalid_request", str(error), None)
            return
        except InvalidRequest as error:
            sink.failed(error.code, error.message, error.param)
            return
        if opened.cancelled:
            self._service.cancel(opened.request_id)  # it went away while we tokenised

    def _cancel(self, identity: bytes, client_id: str) -> None:
        client = self._clients.get(identity)
        if client is not None and client_id in client.requests:  # else it has just ended
            self._abandon(client.requests[client_id])

    def _abandon(self, opened: _OpenRequest) -> None:
        opened.cancelled = True
        if opened.request_id is not None:
            self._service.cancel(opened.request_id)

    # --- to clients --------------------------------------------------------------------------------------------------

    def add_delta(self, client: _Client, moments: Moments, delta: StreamDelta) -> None:
        logprobs = tuple(token.logprobs for token in delta.tokens if token.logprobs is not None)
        new = Delta(
            id=moments.client_id,
            index=delta.index,
            token_ids=tuple(token.token_id for token in delta.tokens),
            text=delta.text,
            logprobs=logprobs or None,
        )
        pending = client.outbox.setdefault(moments.client_id, _Pending(moments))
        pending.delta = new if pending.delta is None else _merge(pending.delta, new)
        self._schedule_flush(client)

    def add_last(self, client: _Client, moments: Moments, last: Done | Failed) -> None:
        client.outbox.setdefault(moments.client_id, _Pending(moments)).last = last
        client.requests.pop(moments.client_id, None)
        self._schedule_flush(client)

    def _schedule_flush(self, client: _Client) -> None:
        if client.stalled_since is not None:
            return  # the next tick tries again; until then its deltas merge
        self._dirty.add(client.identity)
        if not self._flush_scheduled:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        dirty, self._dirty = self._dirty, set()
        for identity in dirty:
            client = self._clients.get(identity)
            if client is not None:
                self._flush_client(client)

    def _flush_client(self, client: _Client) -> None:
        """Everything for one client leaves in one send: a send per token would be most of the coordinator's work."""
        words = list(self._words(client.outbox.values()))
        frames = [self._codec.encode(word) for word in words]
        now = self._clock.now()  # before the send: after it the client may be at work while we wait for a core
        sent = self._server.send(client.identity, *frames) if frames else Sent.OK
        if sent is Sent.UNREACHABLE:
            self._drop(client.identity, "unreachable")
        elif sent is Sent.FULL:
            client.stalled_since = client.stalled_since or now
        else:
            for pending in client.outbox.values():
                if pending.delta is not None:
                    pending.moments.passed(now, last=pending.moments.has_all_text)
            client.outbox.clear()
            client.stalled_since = None

    def _words(self, outbox: Iterable[_Pending]) -> Iterator[Delta | Done | Failed]:
        """A last word often leaves together with the last token, and says how long that has waited."""
        for pending in outbox:
            if pending.delta is not None:
                yield pending.delta
            if isinstance(pending.last, Done):
                ledger = pending.moments.complete(pending.last.ledger, self._clock.now())
                yield msgspec.structs.replace(pending.last, ledger=ledger)
            elif pending.last is not None:
                yield pending.last

    def _send(self, identity: bytes, message: ToClient) -> Sent:
        """Small talk outside any request: lost if the client does not read."""
        return self._server.send(identity, self._codec.encode(message))

    def _welcome(self) -> Welcome:
        model = self._service.model
        cell = self._service.machine.cell
        return Welcome(
            protocol=PROTOCOL_VERSION,
            model=self._config.model,
            max_model_len=model.max_model_len if model is not None else 0,
            prefill_workers=len(cell.of_role("prefill")),
            decode_workers=len(cell.of_role("decode")),
            client_timeout_s=self._config.client_timeout_s,
        )

    def _status(self) -> CellStatus:
        queued = len(self._service.machine.cell.queue)
        return CellStatus(workers=self._worker_status(), queued=queued, in_flight=self._service.in_flight)

    def _tell_ledgers(self) -> None:
        """One page a tick, however many ask for it: tokens wait while it is made."""
        skip = next(iter(self._asked.values()))
        page = self._codec.encode(self._ledgers(skip, self._clock.now()))
        for identity in [one for one, asked in self._asked.items() if asked == skip]:
            del self._asked[identity]
            self._server.send(identity, page)

    def _ledgers(self, skip: int, now: float) -> Ledgers:
        remembered = list(self._service.ended)
        asked = remembered[: max(len(remembered) - skip, 0)][-LEDGERS_AT_ONCE:]
        return Ledgers(
            answers=tuple(
                AnswerLedger(
                    request=ended.request_id,
                    id=ended.moments.client_id,
                    ended_s=now - ended.ended_at,
                    prompt_tokens=ended.prompt_tokens,
                    tokens=ended.tokens,
                    # What never left, because its client was gone, did not wait on and on.
                    ledger=ended.moments.complete(ended.ledger, ended.ended_at),
                )
                for ended in asked
            )
        )

    def _drop(self, identity: bytes, why: str) -> None:
        self._liveness.forget(identity)
        self._waiting.discard(identity)
        self._asked.pop(identity, None)
        client = self._clients.pop(identity, None)
        if client is None:
            return
        if client.requests:
            _log.info("client dropped", extra={"fields": {"why": why, "requests": len(client.requests)}})
        for opened in list(client.requests.values()):
            self._abandon(opened)


class _ClientSink:
    """The `Sink` of one request of one client."""

    def __init__(self, link: ClientLink, client: _Client, moments: Moments) -> None:
        self.moments = moments
        self._link = link
        self._client = client

    def delta(self, delta: StreamDelta) -> None:
        self._link.add_delta(self._client, self.moments, delta)

    def done(self, end: StreamEnd) -> None:
        last = Done(
            id=self.moments.client_id,
            finish_reason=end.reason,
            text=end.text,
            prompt_tokens=end.prompt_tokens,
            completion_tokens=end.completion_tokens,
            ledger=end.ledger,
            stop_reason=end.stop_reason,
        )
        self._link.add_last(self._client, self.moments, last)

    def failed(self, code: FailureCode, message: str, param: str | None) -> None:
        last = Failed(id=self.moments.client_id, code=code, message=message[:MAX_REASON_CHARS], param=param)
        self._link.add_last(self._client, self.moments, last)


def _merge(first: Delta, second: Delta) -> Delta:
    logprobs = (first.logprobs or ()) + (second.logprobs or ())
    return Delta(
        id=first.id,
        index=first.index,
        token_ids=first.token_ids + second.token_ids,
        text=first.text + second.text,
        logprobs=logprobs or None,
    )
