"""What may a TCP connection do before it is a request?

uvicorn's connection on httptools, with the bounds that it lacks: the size of a request's head, the time until a head is
complete, the number of connections. What is refused here gets a body in the form of the OpenAI API, like everything
else. Loop thread only.
"""

import asyncio
from array import array
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from coordinator.config import HttpLimits
from coordinator.http.counters import HttpCounters
from coordinator.http.errors import ApiError


def connections(limits: HttpLimits, counters: HttpCounters) -> "Callable[..., asyncio.Protocol]":
    """What uvicorn calls for each new connection."""

    def make(
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> asyncio.Protocol:
        return Connection(limits, counters, config, server_state, app_state)

    return make


_UPGRADE_HEADERS = frozenset((b"upgrade", b"connection", b"http2-settings"))


class _Parser(httptools.HttpRequestParser):
    """Knows what follows a head that asks for another protocol."""

    rest = b""

    def feed_data(self, data: "bytes | bytearray | memoryview[int] | array[int]") -> None:
        try:
            super().feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self.rest = bytes(data)[upgrade.args[0] :]
            raise


class Connection(HttpToolsProtocol):
    def __init__(
        self,
        limits: HttpLimits,
        counters: HttpCounters,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
    ) -> None:
        super().__init__(config, server_state, app_state)
        self.parser = self._parser = self._new_parser()
        self._limits = limits
        self._counters = counters
        self._head_bytes = 0  # that have arrived of a head that is not complete
        self._parsed_bytes = 0  # of the head that is being read; the bound holds for one that comes in one packet, too
        self._in_head = True
        self._refused = False
        self._again = b""  # to be read once more, by a new parser
        self._unanswered: list[RequestResponseCycle] = []  # more than one if requests are pipelined
        self._deadline: asyncio.TimerHandle | None = None
        self._reader_watch: asyncio.TimerHandle | None = None
        self._answers = 0  # given so far

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        self._counters.open_connections += 1
        if len(self.connections) > self._limits.max_connections:
            self._refuse(503, "too many connections; try again", "too_many_connections", "connections")
            return
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._counters.open_connections -= 1
        self._forget_deadline()
        for cycle in self._unanswered:  # uvicorn tells only the last one
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        if self._reader_watch is not None:
            self._reader_watch.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return  # refused already; what still arrives is not looked at
        if self._in_head:
            self._head_bytes += len(data)  # counts a body that came in the same packet, too: never too little
            if self._deadline is None and not self._answering:
                self._await_head()
        while data:
            self._again = b""
            super().data_received(data)
            data = self._again
        if self._in_head and self._head_bytes > self._limits.max_head_bytes:
            self._refuse_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._parsed_bytes = 0
        # For whoever answers: the client is cut off, what is still in its buffers is dropped.
        self.scope["state"]["abort"] = self.transport.abort

    def on_url(self, url: bytes) -> None:
        self._parsed_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._parsed_bytes += len(name) + len(value) + len(b": \r\n")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_bytes = 0
        self._forget_deadline()
        if self._parsed_bytes > self._limits.max_head_bytes:
            self._refuse_head()
        if self._refused or self.parser.should_upgrade():
            return  # the parser goes on to the end of its packet: nothing of that is served
        super().on_headers_complete()
        self._unanswered = [cycle for cycle in (*self._unanswered, self.cycle) if not cycle.response_complete]

    def on_body(self, body: bytes) -> None:
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._refused or self.parser.should_upgrade():
            return
        super().on_message_complete()
        self._in_head = True

    def _unsupported_upgrade_warning(self) -> None:
        """The request as if it had not asked for another protocol, which a server may ignore (RFC 9110, 7.8).

        httptools takes no body after such a head, and Java's HttpClient asks for HTTP/2 in its first request.
        """
        if self._refused:
            return
        if self._answering or self.parser.get_method() == b"CONNECT":
            self.send_400_response("this server speaks HTTP/1.1 only")
            return
        headers = [b"%s: %s\r\n" % header for header in self.headers if header[0] not in _UPGRADE_HEADERS]
        line = b"%s %s HTTP/%s\r\n" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        self._again = line + b"".join(headers) + b"\r\n" + self._parser.rest
        self.parser = self._parser = self._new_parser()

    def _new_parser(self) -> _Parser:
        parser = _Parser(self)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn: what follows `connection: close`
        return parser

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def on_response_complete(self) -> None:
        self._answers += 1
        super().on_response_complete()
        self._watch_reader()  # uvicorn would wait for ever until the last bytes are gone

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, msg, "invalid_http", None)

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _watch_reader(self) -> None:
        if self._reader_watch is None:
            waiting = self.transport.get_write_buffer_size()
            self._reader_watch = self.loop.call_later(
                self._limits.stall_s, self._look_at_reader, waiting, self._answers
            )

    def _look_at_reader(self, waited: int, answers: int) -> None:
        """Cut off who has taken nothing since the watch began: a connection is not held by not reading."""
        self._reader_watch = None
        waiting = self.transport.get_write_buffer_size()
        if waiting == 0:
            return
        if waiting < waited or answers != self._answers:
            self._watch_reader()
            return
        self._counters.limit_hit("reader_stall")
        self.transport.abort()

    def _await_head(self) -> None:
        self._deadline = self.loop.call_later(self._limits.head_timeout_s, self._head_is_late)

    def _head_is_late(self) -> None:
        self._refuse(408, "the head of the request did not arrive in time", "head_timeout", "head_timeout")

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _refuse_head(self) -> None:
        most = self._limits.max_head_bytes
        self._refuse(431, f"the head of the request is longer than {most} bytes", "head_too_large", "head_bytes")

    def _refuse(self, status: int, message: str, code: str, limit: str | None) -> None:
        if self._refused:
            return
        self._refused = True
        if limit is not None:
            self._counters.limit_hit(limit)
        self._counters.answered(None, "other", status)
        if self.transport.is_closing():
            return
        if self._answering:
            if self.pipeline or self.cycle.response_started:
                self.transport.close()  # nothing can be said in the middle of an answer
                return
            self.cycle.disconnected = (
                True  # it said where it ends and did not: this is its answer, and there is no other
            )
            self.cycle.message_event.set()
        body = ApiError(status, message, code).body()
        head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[status] + head.encode() + body)
        self.transport.close()
