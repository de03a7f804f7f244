"""Does a connection become requests, or an early and clear refusal?"""

import asyncio
import json

import pytest

from coordinator.http.front import LIMITS
from tests.support.asgi import settle
from tests.support.generations import scene
from tests.support.wires import GET, HEAD_TIMEOUT_S, Server, Wire


def refusal(server: Server, wire: Wire, status: int, code: str, limit: str | None) -> None:
    """The only answer is this one, in the form of the API, and the connection is closed."""
    ((said, body),) = wire.answers
    assert said == status
    assert wire.closed
    assert b"connection: close" in wire.data
    assert b"content-type: application/json" in wire.data
    error = json.loads(body)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert server.counters.limit_hits == {**dict.fromkeys(LIMITS, 0), **({} if limit is None else {limit: 1})}
    assert server.counters.requests == {("other", "other", status): 1}


@scene
async def test_a_request_is_answered_and_its_deadline_forgotten() -> None:
    server = Server()
    wire, connection = server.connect()
    assert server.counters.open_connections == 1
    connection.data_received(GET % b"a")
    await asyncio.sleep(HEAD_TIMEOUT_S * 2)
    assert wire.answers == [(200, b"/a")]
    assert not wire.closed
    await server.end(wire)


@scene
async def test_a_slow_answer_has_no_deadline_of_the_head() -> None:
    server = Server()
    server.go.clear()
    wire, connection = server.connect()
    connection.data_received(GET % b"a")
    await asyncio.sleep(HEAD_TIMEOUT_S * 2)
    assert (wire.data, wire.closed) == (b"", False)
    server.go.set()
    await settle()
    assert wire.answers == [(200, b"/a")]
    await server.end(wire)


@scene
async def test_a_slow_body_has_no_deadline_of_the_head() -> None:
    server = Server()
    wire, connection = server.connect()
    connection.data_received(b"POST /a HTTP/1.1\r\ncontent-length: 2\r\n\r\nx")
    await asyncio.sleep(HEAD_TIMEOUT_S * 2)
    connection.data_received(b"y")
    await settle()
    assert (wire.answers, server.bodies) == ([(200, b"/a")], [b"xy"])
    await server.end(wire)


@pytest.mark.parametrize("sent", [b"", b"GET /a HTTP/1.1\r\nhost: "])
def test_a_head_that_does_not_end_in_time(sent: bytes) -> None:
    async def play() -> None:
        server = Server()
        wire, connection = server.connect()
        for byte in sent:
            connection.data_received(bytes((byte,)))
            await asyncio.sleep(0)
        await asyncio.sleep(HEAD_TIMEOUT_S * 2)
        refusal(server, wire, 408, "head_timeout", "head_timeout")
        await server.end(wire)

    asyncio.run(play())


@scene
async def test_bytes_that_trickle_do_not_move_the_deadline() -> None:
    server = Server()
    wire, connection = server.connect()
    for _ in range(8):
        if not wire.closed:
            connection.data_received(b"G" if not connection._head_bytes else b"E")
        await asyncio.sleep(HEAD_TIMEOUT_S / 4)
    assert wire.closed
    await server.end(wire)


@scene
async def test_a_second_request_has_a_deadline_of_its_own_from_its_first_byte() -> None:
    server = Server()
    wire, connection = server.connect()
    connection.data_received(GET % b"a")
    await asyncio.sleep(HEAD_TIMEOUT_S * 2)
    assert not wire.closed, "between two requests a connection may be idle for longer"
    connection.data_received(b"GET /b HT")
    await asyncio.sleep(HEAD_TIMEOUT_S * 2)
    assert [status for status, _ in wire.answers] == [200, 408]
    assert wire.closed
    await server.end(wire)


@scene
async def test_a_second_request_in_time_is_answered() -> None:
    server = Server()
    wire, connection = server.connect()
    connection.data_received(GET % b"a")
    await settle()
    connection.data_received((GET % b"b")[:9])
    await settle()
    connection.data_received((GET % b"b")[9:])
    await asyncio.sleep(HEAD_TIMEOUT_S * 2)
    assert wire.answers == [(200, b"/a"), (200, b"/b")]
    assert not wire.closed
    await server.end(wire)


@pytest.mark.parametrize("piece", [1, 100, 10_000])
@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("where", ["url", "header", "headers"])
def test_a_head_that_is_too_large(piece: int, complete: bool, where: str) -> None:
    async def play() -> None:
        server = Server()
        wire, connection = server.connect()
        head = {
            "url": b"GET /" + b"a" * 2000 + b" HTTP/1.1\r\nx: y\r\n",
            "header": b"GET / HTTP/1.1\r\nx: " + b"y" * 2000 + b"\r\n",
            "headers": b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 400,
        }[where]
        sent = head + (b"\r\n" if complete else b"")
        for start in range(0, len(sent), piece):
            connection.data_received(sent[start : start + piece])
        await settle()
        refusal(server, wire, 431, "head_too_large", "head_bytes")
        assert server.asked == []
        await server.end(wire)

    asyncio.run(play())


@scene
async def test_a_large_head_behind_a_good_request_is_not_served() -> None:
    server = Server()
    wire, connection = server.connect()
    connection.data_received(GET % b"a")
    await settle()
    connection.data_received(b"GET /b HTTP/1.1\r\nx: " + b"y" * 2000 + b"\r\n\r\n" + GET % b"c")
    await settle()
    assert [status for status, _ in wire.answers] == [200, 431]
    assert server.asked == ["/a"]
    await server.end(wire)


@scene
async def test_a_body_does_not_count_as_a_head() -> None:
    server = Server()
    wire, connection = server.connect()
    post = b"POST /a HTTP/1.1\r\ncontent-length: 5000\r\n\r\n" + b"x" * 5000
    connection.data_received(post + post)
    await settle()
    connection.data_received(post)
    await settle()
    assert wire.answers == [(200, b"/a")] * 3
    assert [len(body) for body in server.bodies] == [5000] * 3
    await server.end(wire)


@scene
async def test_many_small_heads_are_not_a_large_one() -> None:
    server = Server()
    wire, connection = server.connect()
    for _ in range(100):
        connection.data_received(GET % b"a")
        await settle()
    assert wire.answers == [(200, b"/a")] * 100
    await server.end(wire)


@scene
async def test_too_many_connections() -> None:
    server = Server(max_connections=2)
    first, _ = server.connect()
    second, _ = server.connect()
    third, connection = server.connect()
    connection.data_received(GET % b"a")
    refusal(server, third, 503, "too_many_connections", "connections")
    await settle()
    assert server.counters.open_connections == 2
    first.close()
    await settle()
    fourth, connection = server.connect()
    connection.data_received(GET % b"b")
    await settle()
    assert fourth.answers == [(200, b"/b")]
    assert server.asked == ["/b"]
    await server.end(second, fourth)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"hello\r\n\r\n",
        b"\x00" * 50,
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"\x00" * 5000,
        b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_garbage_is_refused_in_the_form_of_the_api(garbage: bytes) -> None:
    async def play() -> None:
        server = Server()
        wire, connection = server.connect()
        connection.data_received(garbage)
        await settle()
        refusal(server, wire, 400, "invalid_http", None)
        connection.data_received(GET % b"a")
        await settle()
        assert len(wire.answers) == 1, "what still arrives is not looked at"
        assert server.asked == []
        await server.end(wire)

    asyncio.run(play())


@scene
async def test_pipelined_requests_are_answered_in_turn() -> None:
    server = Server()
    server.go.clear()
    wire, connection = server.connect()
    connection.data_received(GET % b"a" + GET % b"b" + GET % b"c")
    await asyncio.sleep(HEAD_TIMEOUT_S * 2)
    assert server.asked == ["/a"]
    server.go.set()
    await settle()
    await settle()
    assert wire.answers == [(200, b"/a"), (200, b"/b"), (200, b"/c")]
    await server.end(wire)


@scene
async def test_a_slow_head_behind_a_request_does_not_cut_off_its_answer() -> None:
    server = Server()
    server.go.clear()
    wire, connection = server.connect()
    connection.data_received(GET % b"a" + b"GET /b")
    connection.data_received(b" HTTP")
    await asyncio.sleep(HEAD_TIMEOUT_S * 2)
    assert not wire.closed
    server.go.set()
    await settle()
    connection.data_received((GET % b"b")[len(b"GET /b HTTP") :])
    await settle()
    assert wire.answers == [(200, b"/a"), (200, b"/b")]
    await server.end(wire)


@scene
async def test_garbage_behind_a_request_is_its_answer_and_the_last() -> None:
    server = Server()
    server.go.clear()
    wire, connection = server.connect()
    connection.data_received(GET % b"a")
    await settle()
    connection.data_received(b"\x00garbage")
    assert [status for status, _ in wire.answers] == [400]
    assert wire.closed
    await settle()
    assert server.left == ["/a"]
    await server.end(wire)


@pytest.mark.parametrize("behind", [0, 1, 2])
def test_a_client_that_leaves_is_gone_for_all_of_its_requests(behind: int) -> None:
    async def play() -> None:
        server = Server()
        server.go.clear()
        wire, connection = server.connect()
        connection.data_received(GET % b"a" + (GET % b"b") * behind)
        await settle()
        wire.close()
        await settle()
        assert server.left == ["/a"]
        await server.end()
        assert server.asked == ["/a"]

    asyncio.run(play())


@scene
async def test_whoever_answers_can_cut_the_client_off() -> None:
    server = Server()
    server.go.clear()
    wire, connection = server.connect()
    connection.data_received(GET % b"a")
    await settle()
    connection.scope["state"]["abort"]()
    await settle()
    assert wire.aborted
    assert server.left == ["/a"]
    await server.end(wire)


@pytest.mark.parametrize("piece", [7, 10_000])
def test_a_request_that_would_like_another_protocol_is_served_in_this_one(piece: int) -> None:
    """As Java's HttpClient sends its first one."""

    async def play() -> None:
        server = Server()
        wire, connection = server.connect()
        upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEA\r\n"
        sent = b"POST /a HTTP/1.1\r\ncontent-length: 5\r\n" + upgrade + b"\r\nhello" + GET % b"b"
        for start in range(0, len(sent), piece):
            connection.data_received(sent[start : start + piece])
        await settle()
        await asyncio.sleep(HEAD_TIMEOUT_S * 2)
        assert wire.answers == [(200, b"/a"), (200, b"/b")]
        assert server.bodies == [b"hello", b""]
        assert not wire.closed
        await server.end(wire)

    asyncio.run(play())


@scene
async def test_another_protocol_for_whatever_follows_is_refused() -> None:
    server = Server()
    wire, connection = server.connect()
    connection.data_received(b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\nbytes")
    await settle()
    assert server.asked == []
    refusal(server, wire, 400, "invalid_http", None)
    await server.end(wire)


@scene
async def test_a_packet_full_of_upgrades_is_no_burden() -> None:
    server = Server()
    wire, connection = server.connect()
    connection.data_received(b"GET /a HTTP/1.1\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n" * 4000)
    assert wire.closed
    await settle()
    await server.end(wire)


@scene
async def test_a_client_that_leaves_the_end_of_an_answer_in_its_buffers_is_cut_off() -> None:
    server = Server(stall_s=0.02)
    wire, connection = server.connect()
    wire.unread = 100
    connection.data_received(GET % b"a")
    await asyncio.sleep(0.1)
    assert wire.aborted
    assert server.counters.limit_hits["reader_stall"] == 1


@scene
async def test_a_client_that_takes_its_answer_byte_by_byte_keeps_its_connection() -> None:
    server = Server(stall_s=0.02)
    wire, connection = server.connect()
    wire.unread = 100
    connection.data_received(GET % b"a")
    for _ in range(20):
        wire.unread -= 5
        await asyncio.sleep(0.01)
    assert not wire.aborted
    assert server.counters.limit_hits["reader_stall"] == 0
