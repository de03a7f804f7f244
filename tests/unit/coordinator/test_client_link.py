"""Are questions about the cell answered to clients that said Hello, and never so often that streams would feel it?"""

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from coordinator.client_link import ClientLink
from tests.support.handoff import until
from tests.support.metrics import SimulatedService
from transport import codec
from transport.control import Context, ControlClient, new_context
from transport.messages.client import (
    LEDGERS_AT_ONCE,
    AskLedgers,
    AskTimeline,
    ClientHello,
    Goodbye,
    Ledgers,
    Ping,
    Pong,
    ToClient,
    ToCoordinator,
    WorkerStatus,
)
from transport.messages.common import PROTOCOL_VERSION

ENDPOINT = "inproc://clients"


class Client:
    def __init__(self, context: Context) -> None:
        self.said: list[ToClient] = []
        self._codec = codec.client_side()
        self.link = ControlClient(context, ENDPOINT, self._received)

    def _received(self, data: bytes) -> None:
        self.said.append(self._codec.decode(data))

    async def send(self, *messages: ToCoordinator) -> None:
        """Until all of them have been taken in."""
        before = self._answers_to_ping()
        for message in (*messages, Ping()):
            self.link.send(self._codec.encode(message))
        await until(lambda: self._answers_to_ping() > before)

    def _answers_to_ping(self) -> int:
        return sum(
            isinstance(word, Pong) or (isinstance(word, Goodbye) and "dropped" in word.reason) for word in self.said
        )

    def pages(self) -> list[list[int]]:
        """The numbers of the answers in every message with ledgers."""
        return [[one.request for one in word.answers] for word in self.said if isinstance(word, Ledgers)]


class Bench:
    def __init__(self, context: Context) -> None:
        self.cell = SimulatedService()
        service = self.cell.service
        service.config = msgspec.structs.replace(service.config, client_endpoint=ENDPOINT)
        self.described = 0
        self.link = ClientLink(context, service, self.cell.clock, self._describe)
        self.link.ready()
        self.clients = [Client(context), Client(context)]

    def _describe(self) -> tuple[WorkerStatus, ...]:
        self.described += 1
        return ()

    async def tick(self) -> None:
        """And whatever it says has arrived."""
        self.link.tick(self.cell.clock.now())
        for client in self.clients:
            await client.send()


def play(body: Callable[[Bench], Awaitable[None]]) -> None:
    async def main(context: Context) -> None:
        bench = Bench(context)
        await body(bench)
        for client in bench.clients:
            client.link.close()
        bench.link.close()

    context = new_context()
    try:
        asyncio.run(main(context))
    finally:
        context.destroy(linger=0)


def test_without_a_hello_there_is_no_answer() -> None:
    async def body(bench: Bench) -> None:
        bench.cell.answer()
        client = bench.clients[0]
        await client.send(AskLedgers(), AskTimeline(last_s=1.0))
        await bench.tick()
        assert {type(word) for word in client.said} == {Goodbye}
        assert bench.described == 0

    play(body)


def test_ledgers_are_told_a_page_at_a_time_however_often_they_are_asked_for() -> None:
    async def body(bench: Bench) -> None:
        answers = LEDGERS_AT_ONCE + 7
        for _ in range(answers):
            bench.cell.answer()
        client = bench.clients[0]
        await client.send(ClientHello(protocol=PROTOCOL_VERSION), *[AskLedgers()] * 20)
        assert client.pages() == []
        await bench.tick()
        await bench.tick()
        assert client.pages() == [list(range(7, answers))]
        await client.send(AskLedgers(skip=LEDGERS_AT_ONCE))
        await bench.tick()
        await client.send(AskLedgers(skip=answers))
        await bench.tick()
        assert client.pages()[1:] == [list(range(7)), []]

    play(body)


def test_one_page_a_tick_for_everybody_who_asks_for_it() -> None:
    async def body(bench: Bench) -> None:
        for _ in range(2):
            bench.cell.answer()
        first, second = bench.clients
        for client in bench.clients:
            await client.send(ClientHello(protocol=PROTOCOL_VERSION), AskLedgers())
        await bench.tick()
        assert (first.pages(), second.pages()) == ([[0, 1]], [[0, 1]])
        await first.send(AskLedgers())
        await second.send(AskLedgers(skip=1))
        await bench.tick()
        assert (len(first.pages()), len(second.pages())) == (2, 1)
        await bench.tick()
        assert (first.pages()[1:], second.pages()[1:]) == ([[0, 1]], [[0]])

    play(body)


def test_an_answer_whose_client_was_gone_does_not_grow() -> None:
    async def body(bench: Bench) -> None:
        bench.cell.answer()  # and its front passes nothing on
        bench.cell.clock.time += 1000.0
        client = bench.clients[0]
        await client.send(ClientHello(protocol=PROTOCOL_VERSION), AskLedgers())
        await bench.tick()
        (page,) = [word for word in client.said if isinstance(word, Ledgers)]
        assert page.answers[0].ended_s == 1000.0
        assert page.answers[0].ledger.send_s < 1.0
        assert page.answers[0].ledger.first_out_s < 1.0

    play(body)
