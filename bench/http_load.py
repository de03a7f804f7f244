"""Who reads the streams when the HTTP front is measured, at the least cost?

A process of its own, started by `bench.http`: bare connections that count events and parse nothing, because a real
client needs several times the CPU time of the server that it measures. Each answer's own count of tokens is compared.
"""

import asyncio
import re
import time
from collections.abc import Iterator

import msgspec

from bench.child import Channel, serve

_EVENT = b"data: "
_END = b"\r\n0\r\n\r\n"  # of a chunked body
_KEPT_BYTES = 600  # holds the event with the usage, which is the last but one
_USAGE = re.compile(rb'"completion_tokens":(\d+)')


class Load(msgspec.Struct, frozen=True):
    """Answers to read: `requests` of them, `streams` at a time, each of `tokens` tokens."""

    port: int
    path: str
    body: str
    requests: int
    streams: int
    tokens: int


class Loaded(msgspec.Struct, frozen=True):
    events: int
    wall_s: float
    client_s: float  # CPU time


class Reader(asyncio.Protocol):
    """One connection, one request after the other until `left` is empty."""

    def __init__(self, load: Load, left: Iterator[int], done: "asyncio.Future[None]") -> None:
        self.events = 0
        self._tokens = load.tokens
        self._request = request_bytes(load)
        self._left = left
        self.done = done
        self._tail = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # what TCP has
        self._transport = transport
        self._next()

    def data_received(self, data: bytes) -> None:
        if not self._tail and not data.startswith(b"HTTP/1.1 200 "):
            self._fail(f"not an answer: {data[:300]!r}")
            return
        seen = len(self._tail)
        known = max(0, seen - len(_EVENT) + 1)  # a mark may begin in what came before, but not lie there
        text = self._tail + data
        self.events += text.count(_EVENT, known)
        self._tail = text[-_KEPT_BYTES:]
        if text.endswith(_END):
            self._over()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"the connection ended: {exc}")

    def _over(self) -> None:
        usage = _USAGE.search(self._tail)
        if usage is None or int(usage[1]) != self._tokens:
            self._fail(f"{self._tokens} tokens were asked for, the answer ended with {self._tail!r}")
            return
        self._tail = b""
        self._next()

    def _next(self) -> None:
        if next(self._left, None) is not None:
            self._transport.write(self._request)
        elif not self.done.done():
            self.done.set_result(None)
            self._transport.close()

    def _fail(self, why: str) -> None:
        if not self.done.done():
            self.done.set_exception(AssertionError(why))


def request_bytes(load: Load) -> bytes:
    body = load.body.encode()
    head = (
        f"POST {load.path} HTTP/1.1\r\nhost: 127.0.0.1:{load.port}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def read_all(load: Load) -> Loaded:
    """
    Raises:
        AssertionError: an answer is not a stream of `tokens` tokens.
    """
    loop = asyncio.get_running_loop()
    left = iter(range(load.requests))
    started, spent = time.perf_counter(), time.process_time()
    readers = [Reader(load, left, loop.create_future()) for _ in range(load.streams)]
    for reader in readers:
        await loop.create_connection(lambda reader=reader: reader, "127.0.0.1", load.port)  # type: ignore[misc]
    await asyncio.gather(*(reader.done for reader in readers))
    return Loaded(
        events=sum(reader.events for reader in readers),
        wall_s=time.perf_counter() - started,
        client_s=time.process_time() - spent,
    )


async def _main(channel: Channel) -> None:
    while True:
        channel.send(await read_all(await channel.receive(Load)))


if __name__ == "__main__":
    serve(_main)
