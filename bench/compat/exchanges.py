"""Which HTTP requests and answers are in the bytes that a tap has heard, and when did their parts come?

Pure: bytes with times to exchanges, by httptools. A connection may carry several exchanges one after the other; bodies
may be chunked and cut anywhere. An answer that ends with its connection, without a length or chunks, is never complete
here: this server sends none.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import httptools

from bench.compat.tap import Piece, Wire


@dataclass(slots=True)
class Exchange:
    """A request and its answer, as far as it came."""

    sent_s: float  # the first byte of the request
    target: str = ""
    headers: dict[str, str] = field(default_factory=dict)  # of the request; names in lower case
    body: bytes = b""
    status: int | None = None  # None: no answer began
    answer: list[Piece] = field(default_factory=list)  # its body, without the framing
    ended_s: float | None = None  # the last byte of the answer; None: it never came
    broken_s: float | None = None  # the server ended the connection before that

    @property
    def over_s(self) -> float:
        """When the last was heard of it."""
        ends = [self.ended_s, self.broken_s, self.answer[-1].at_s if self.answer else None, self.sent_s]
        return next(at_s for at_s in ends if at_s is not None)


def exchanges(wires: Iterable[Wire]) -> list[Exchange]:
    """In the order of their first bytes.

    Raises:
        httptools.HttpParserError: these bytes are not HTTP.
    """
    return sorted((one for wire in wires for one in _of_wire(wire)), key=lambda one: one.sent_s)


def _of_wire(wire: Wire) -> list[Exchange]:
    asked = _Asked()
    requests = httptools.HttpRequestParser(asked)
    for asked.at_s, data in wire.sent:
        requests.feed_data(data)
    answered = _Answered(iter(asked.exchanges))
    answers = httptools.HttpResponseParser(answered)
    answered.parser = answers
    for answered.at_s, data in wire.answered:
        answers.feed_data(data)
    for one in asked.exchanges:
        if one.ended_s is None:
            one.broken_s = wire.server_left_s
    return asked.exchanges


class _Asked:
    """What the parser of requests calls."""

    def __init__(self) -> None:
        self.at_s = 0.0
        self.exchanges: list[Exchange] = []

    def on_message_begin(self) -> None:
        self.exchanges.append(Exchange(self.at_s))

    def on_url(self, part: bytes) -> None:
        self.exchanges[-1].target += part.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        self.exchanges[-1].headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, part: bytes) -> None:
        self.exchanges[-1].body += part


class _Answered:
    """What the parser of answers calls: the next final answer belongs to the next request."""

    parser: httptools.HttpResponseParser

    def __init__(self, waiting: Iterator[Exchange]) -> None:
        self.at_s = 0.0
        self._waiting = waiting
        self._current: Exchange | None = None

    def on_headers_complete(self) -> None:
        status = self.parser.get_status_code()
        if status >= 200:  # 100 and its like announce an answer
            self._current = next(self._waiting, None)
            if self._current is not None:
                self._current.status = status

    def on_body(self, part: bytes) -> None:
        if self._current is not None:
            self._current.answer.append(Piece(self.at_s, part))

    def on_message_complete(self) -> None:
        if self._current is not None:
            self._current.ended_s = self.at_s
            self._current = None
