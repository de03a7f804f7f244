"""What do 200 streams cost when some of their readers leave and some hardly read?

The engine's answers are known, so that every token of every stream that was read to its end can be compared.
"""

import asyncio
import json
import random
import socket
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any

import pytest

from engine.fake import fake_tokens
from tests.support.http_cells import HostedCell, hosted, mock_http
from tests.support.raw_http import ask, request

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

STREAMS, LEAVERS, CRAWLERS = 200, 50, 20
TOKENS = 150
MOST_GROWTH_BYTES = 64 << 20
PATIENCE_S = 60.0


@dataclass
class Client:
    """One stream of one reader."""

    number: int
    tokens: list[int] = field(default_factory=list)
    usage: int = 0
    done: bool = False

    @property
    def prompt(self) -> list[int]:
        return [self.number, *range(self.number % 40)]

    async def open(self, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        connection = socket.create_connection(("127.0.0.1", port))
        if self.number < CRAWLERS:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = {
            "prompt": self.prompt,
            "max_tokens": TOKENS,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
            "stream_options": {"include_usage": True},
        }
        reader, writer = await asyncio.open_connection(sock=connection, limit=2 << 10)
        writer.write(request("/v1/completions", body))
        return reader, writer

    async def read_all(self, port: int) -> None:
        reader, writer = await self.open(port)
        while not self.done:
            line = await reader.readline()
            assert line, "the stream ended without [DONE]"
            if line.startswith(b"data: "):
                self._take(line.removeprefix(b"data: ").strip())
        writer.close()

    async def crawl(self, port: int, stop: asyncio.Event) -> None:
        """One byte per second."""
        reader, writer = await self.open(port)
        while not stop.is_set():
            await reader.read(1)
            await asyncio.sleep(1.0)
        writer.close()

    async def leave(self, port: int, after_s: float) -> None:
        _, writer = await self.open(port)
        await asyncio.sleep(after_s)
        writer.transport.abort()

    def _take(self, data: bytes) -> None:
        if data == b"[DONE]":
            self.done = True
            return
        event: dict[str, Any] = json.loads(data)
        for choice in event["choices"]:
            self.tokens += choice["token_ids"]
        if "usage" in event:
            self.usage = event["usage"]["completion_tokens"]


async def _largest(cell: HostedCell, work: Awaitable[object]) -> int:
    """The coordinator's memory at its largest while `work` goes on."""
    task = asyncio.ensure_future(work)
    largest = 0
    while not task.done():
        largest = max(largest, cell.coordinator_bytes())
        await asyncio.sleep(0.1)
    await task
    return largest


def test_two_hundred_streams_of_good_and_bad_readers() -> None:
    """50 leave at random moments, 20 read one byte per second, 130 get exactly their tokens."""
    chance = random.Random(1)
    clients = [Client(number) for number in range(STREAMS)]
    crawlers, leavers, readers = (
        clients[:CRAWLERS],
        clients[CRAWLERS : CRAWLERS + LEAVERS],
        clients[CRAWLERS + LEAVERS :],
    )

    async def run(cell: HostedCell) -> int:
        stop = asyncio.Event()
        crawling = [asyncio.create_task(client.crawl(cell.port, stop)) for client in crawlers]
        work = [client.leave(cell.port, chance.uniform(0.0, 1.5)) for client in leavers]
        work += [client.read_all(cell.port) for client in readers]
        async with asyncio.timeout(PATIENCE_S):
            largest = await _largest(cell, asyncio.gather(*work))
        # The crawlers' answers are small enough for the buffers: what is left is theirs, and ends by itself.
        assert all(not task.done() for task in crawling)
        await asyncio.to_thread(cell.until_in_flight, 0)
        stop.set()
        await asyncio.gather(*crawling)
        return largest

    with hosted(mock_http(fake_step_s=0.01, max_batch=256, decode_kv_tokens=100_000)) as cell:
        asyncio.run(run_some(cell))  # what a first request loads is no growth
        before = cell.coordinator_bytes()
        largest = asyncio.run(run(cell))
        for client in readers:
            assert client.tokens == fake_tokens(client.prompt, TOKENS)
            assert client.usage == TOKENS
        cell.pages_back()
        after = cell.coordinator_bytes()
        assert largest - before < MOST_GROWTH_BYTES
        assert after - before < MOST_GROWTH_BYTES
        counted = metric(cell, "kvrelay_http_disconnects_total")
        assert LEAVERS * 0.5 <= counted <= LEAVERS + CRAWLERS  # some left before their start


async def run_some(cell: HostedCell) -> None:
    await asyncio.gather(*(Client(number).read_all(cell.port) for number in range(100, 110)))


def metric(cell: HostedCell, name: str) -> float:
    text = ask(cell.port, request("/metrics")).body.decode()
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith((name + " ", name + "{")))
