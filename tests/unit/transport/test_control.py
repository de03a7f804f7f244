"""Do control messages arrive whole, in order and all of them, and does a sender learn when they cannot?

Real ZeroMQ over Unix sockets.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq

from transport.control import Context, ControlClient, ControlServer, Sent, new_context
from transport.errors import PeerLost

Body = Callable[[Context, str], Awaitable[None]]


def play(tmp_path: Path, body: Body) -> None:
    """Run `body(context, endpoint)` in a loop of its own, whose callbacks must not raise."""
    raised: list[object] = []

    async def main(context: Context) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, what: raised.append(what))
        async with asyncio.timeout(30):
            await body(context, f"ipc://{tmp_path}/s")

    context = new_context()
    try:
        asyncio.run(main(context))
    finally:
        context.destroy(linger=0)
    assert raised == []


@contextmanager
def stranger(context: Context, endpoint: str, receive_high_water: int = 1000) -> Iterator[zmq.Socket[bytes]]:
    """A peer that is not driven by our code."""
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.RCVHWM, receive_high_water)
    socket.connect(endpoint)
    try:
        yield socket
    finally:
        socket.close(linger=0)


class Heard:
    """What a server was told, and a way to wait for so many messages."""

    def __init__(self) -> None:
        self.messages: list[tuple[bytes, bytes]] = []
        self._changed = asyncio.Event()

    def __call__(self, peer: bytes, data: bytes) -> None:
        self.messages.append((peer, data))
        self._changed.set()

    async def count(self, number: int) -> None:
        while len(self.messages) < number:
            self._changed.clear()
            await self._changed.wait()

    @property
    def data(self) -> list[bytes]:
        return [data for _, data in self.messages]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - zmq tells nobody that a send would succeed now
        await asyncio.sleep(0.001)


def send_many(client: ControlClient, count: int) -> None:
    for value in range(count):
        client.send(number(value))


def number(value: int) -> bytes:
    return value.to_bytes(4, "big")


# --- order and completeness ------------------------------------------------------------------------------------------


def test_messages_arrive_in_order_and_answers_find_their_peer(tmp_path: Path) -> None:
    async def body(context: Context, endpoint: str) -> None:
        heard = Heard()
        server = ControlServer(context, endpoint, heard)
        answers: list[list[bytes]] = [[], []]
        clients = [ControlClient(context, endpoint, answer.append) for answer in answers]
        for value in range(100):
            for client in clients:
                client.send(number(value))
        await heard.count(200)
        peers = {peer for peer, _ in heard.messages}
        assert len(peers) == 2
        for peer in peers:
            assert [data for who, data in heard.messages if who == peer] == [number(value) for value in range(100)]
            assert server.send(peer, b"to " + peer) is Sent.OK
        await until(lambda: all(answers))
        assert {answer[0] for answer in answers} == {b"to " + peer for peer in peers}
        server.close()
        for client in clients:
            client.close()

    play(tmp_path, body)


def test_ten_thousand_messages_both_ways_at_once_all_arrive(tmp_path: Path) -> None:
    """zmq's descriptor tells only of edges: input that comes while we send must not wait for the next message."""
    count = 10_000

    async def body(context: Context, endpoint: str) -> None:
        echoed: list[bytes] = []
        done = asyncio.Event()

        def on_answer(data: bytes) -> None:
            echoed.append(data)
            if len(echoed) == count:
                done.set()

        def echo(peer: bytes, data: bytes) -> None:
            assert server.send(peer, data) is Sent.OK

        server = ControlServer(context, endpoint, echo)
        client = ControlClient(context, endpoint, on_answer)
        for value in range(count):
            client.send(number(value))
            if value % 100 == 0:
                await asyncio.sleep(0)
        await done.wait()
        assert echoed == [number(value) for value in range(count)]
        server.close()
        client.close()

    play(tmp_path, body)


def test_a_single_message_at_a_time_is_enough_to_be_heard(tmp_path: Path) -> None:
    """Nothing but the message itself wakes the receiver: no further traffic, no timer."""

    async def body(context: Context, endpoint: str) -> None:
        heard = Heard()
        server = ControlServer(context, endpoint, heard)
        with stranger(context, endpoint) as peer:
            for value in range(200):
                peer.send(number(value))
                await heard.count(value + 1)
        server.close()

    play(tmp_path, body)


def test_input_that_a_send_has_noticed_first_is_not_forgotten(tmp_path: Path) -> None:
    """A send takes the edge from the descriptor: without a look after it, this message would wait for the next one."""

    async def body(context: Context, endpoint: str) -> None:
        heard = Heard()
        server = ControlServer(context, endpoint, heard)
        with stranger(context, endpoint) as peer:
            peer.send(b"first")
            await heard.count(1)
            for value in range(2, 12):
                peer.send(number(value))
                time.sleep(0.01)  # noqa: ASYNC251 - it arrives while the loop does not look
                server.send(heard.messages[0][0], b"something else")
                async with asyncio.timeout(5):
                    await heard.count(value)
        server.close()

    play(tmp_path, body)


def test_a_flood_leaves_other_callbacks_their_turn(tmp_path: Path) -> None:
    async def body(context: Context, endpoint: str) -> None:
        heard = Heard()
        server = ControlServer(context, endpoint, heard)
        with stranger(context, endpoint) as peer:
            for value in range(1000):
                peer.send(number(value))
            await heard.count(1)
            seen = len(heard.messages)
            await asyncio.sleep(0)
            assert seen < 1000
            await heard.count(1000)
        server.close()

    play(tmp_path, body)


def test_the_last_words_before_a_good_end_still_arrive(tmp_path: Path) -> None:
    async def body(context: Context, endpoint: str) -> None:
        heard = Heard()
        own = new_context()
        client = ControlClient(own, endpoint, lambda _: None)
        send_many(client, 1000)
        client.close()
        leaving = asyncio.create_task(asyncio.to_thread(own.term))
        server = ControlServer(context, endpoint, heard)
        await heard.count(1000)
        await leaving
        server.close()

    play(tmp_path, body)


# --- what does not get through ---------------------------------------------------------------------------------------


def test_a_peer_that_is_not_there_is_unreachable(tmp_path: Path) -> None:
    async def body(context: Context, endpoint: str) -> None:
        heard = Heard()
        server = ControlServer(context, endpoint, heard)
        assert server.send(b"nobody", b"hello") is Sent.UNREACHABLE
        with stranger(context, endpoint) as peer:
            peer.send(b"hello")
            await heard.count(1)
            (who, _) = heard.messages[0]
            assert server.send(who, b"hello") is Sent.OK
        await until(lambda: server.send(who, b"still there?") is Sent.UNREACHABLE)
        server.close()

    play(tmp_path, body)


def test_a_peer_that_does_not_read_is_full_until_it_reads(tmp_path: Path) -> None:
    async def body(context: Context, endpoint: str) -> None:
        heard = Heard()
        server = ControlServer(context, endpoint, heard, high_water=10)
        with stranger(context, endpoint, receive_high_water=10) as peer:
            peer.send(b"hello")
            await heard.count(1)
            who = heard.messages[0][0]
            sent = 0
            while server.send(who, number(sent) + bytes(100_000)) is Sent.OK:
                sent += 1
                assert sent < 1000, "it takes what nobody reads"
                await asyncio.sleep(0.001)
            assert sent >= 10
            assert server.send(who, b"another") is Sent.FULL
            for value in range(sent):
                assert (await asyncio.to_thread(peer.recv))[:4] == number(value), "what was taken arrives, in order"
            await until(lambda: server.send(who, b"again") is Sent.OK)
        server.close()

    play(tmp_path, body)


def test_a_peer_that_does_not_read_does_not_hold_up_the_others(tmp_path: Path) -> None:
    async def body(context: Context, endpoint: str) -> None:
        heard = Heard()
        server = ControlServer(context, endpoint, heard, high_water=10)
        with stranger(context, endpoint, receive_high_water=10) as idle, stranger(context, endpoint) as busy:
            idle.send(b"idle")
            busy.send(b"busy")
            await heard.count(2)
            peers = {data: who for who, data in heard.messages}
            await until(lambda: server.send(peers[b"idle"], bytes(100_000)) is Sent.FULL)
            assert server.send(peers[b"busy"], b"hello") is Sent.OK
            assert await asyncio.to_thread(busy.recv) == b"hello"
        server.close()

    play(tmp_path, body)


def test_a_server_that_never_reads_is_a_lost_peer(tmp_path: Path) -> None:
    async def body(context: Context, endpoint: str) -> None:
        client = ControlClient(context, endpoint, lambda _: None)
        with pytest.raises(PeerLost):
            send_many(client, 100_000)
        client.close()

    play(tmp_path, body)


# --- strange peers ---------------------------------------------------------------------------------------------------


def test_messages_with_a_wrong_number_of_frames_are_counted_and_dropped(tmp_path: Path) -> None:
    async def body(context: Context, endpoint: str) -> None:
        heard = Heard()
        server = ControlServer(context, endpoint, heard)
        with stranger(context, endpoint) as peer:
            peer.send_multipart([b"", b"as a REQ would"])
            peer.send_multipart([b"a", b"b", b"c"])
            peer.send(b"good")
            await heard.count(1)
            assert heard.data == [b"good"]
            assert server.malformed == 2
        server.close()

    play(tmp_path, body)


def test_an_empty_message_is_a_message(tmp_path: Path) -> None:
    async def body(context: Context, endpoint: str) -> None:
        heard = Heard()
        server = ControlServer(context, endpoint, heard)
        with stranger(context, endpoint) as peer:
            peer.send(b"")
            await heard.count(1)
            assert heard.data == [b""]
        server.close()

    play(tmp_path, body)


def test_a_handler_may_close_its_own_end(tmp_path: Path) -> None:
    async def body(context: Context, endpoint: str) -> None:
        seen: list[bytes] = []
        closed = asyncio.Event()

        def on_message(_: bytes, data: bytes) -> None:
            seen.append(data)
            server.close()
            closed.set()

        server = ControlServer(context, endpoint, on_message)
        with stranger(context, endpoint) as peer:
            for value in range(10):
                peer.send(number(value))
            await closed.wait()
            await asyncio.sleep(0.01)
        assert seen == [number(0)]
        server.close()

    play(tmp_path, body)


def test_the_endpoint_is_the_one_that_was_bound(tmp_path: Path) -> None:
    async def body(context: Context, _: str) -> None:
        server = ControlServer(context, "tcp://127.0.0.1:*", lambda _, __: None)
        assert server.endpoint.startswith("tcp://127.0.0.1:")
        assert not server.endpoint.endswith("*")
        server.close()

    play(tmp_path, body)
