"""What went over a wire, read back from its bytes; and the relay itself, on sockets of this machine."""

import asyncio
from collections.abc import Iterator

import msgspec
import pytest

from bench.compat.exchanges import exchanges
from bench.compat.streamed import Streamed, streamed
from bench.compat.tap import Piece, Wire, tap
from launch.evaluation.measures import latencies
from launch.evaluation.results import Outcome

DONE = b"data: [DONE]\n\n"


def request(name: str, *, stream: bool = True) -> bytes:
    body = msgspec.json.encode({"model": "m", "stream": stream, "max_completion_tokens": 3})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nX-Request-ID: {name}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def event(content: str | None, *, role: str | None = None, tokens: int | None = None) -> bytes:
    usage = {} if tokens is None else {"usage": {"prompt_tokens": 7, "completion_tokens": tokens}}
    choices = (
        [] if content is None else [{"index": 0, "delta": {"content": content, **({"role": role} if role else {})}}]
    )
    return b"data: " + msgspec.json.encode({"id": "answer-1", "choices": choices, **usage}) + b"\n\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
ROLE = event("", role="assistant")


def answer(*timed: tuple[float, bytes], head_s: float = 1.5, ended: bool = True) -> list[Piece]:
    """Each event in a chunk of its own; the end comes with the last."""
    pieces = [Piece(head_s, HEAD), *(Piece(at_s, chunk(data)) for at_s, data in timed)]
    return pieces + ([Piece(timed[-1][0], END)] if ended else [])


def heard(sent: list[Piece], answered: list[Piece], **left: float) -> list[Streamed]:
    return streamed(exchanges([Wire(sent=sent, answered=answered, **left)]))


PLAIN = answer((2.0, ROLE), (2.0, event("a")), (3.0, event("b")), (5.0, event("c") + event(None, tokens=3) + DONE))


def test_a_stream_becomes_the_result_of_an_evaluation() -> None:
    [one] = heard([Piece(1.0, request("one"))], PLAIN)
    assert one.names == {"one", "answer-1"}
    assert (one.counted, one.told, one.result.prompt_tokens, one.result.asked_tokens) == (3, 3, 7, 3)
    assert one.result.token_s == (1.0, 2.0, 4.0)  # the run starts with the first request
    assert (one.result.sent_s, one.result.end_s, one.result.outcome) == (0.0, 4.0, Outcome.COMPLETED)
    assert latencies(one.result).gaps_s == (1.0, 2.0)
    assert one.shown_s == one.result.token_s


def test_a_token_without_text_is_a_token_as_in_an_evaluation() -> None:
    """Without running usage nothing tells when it came; it is spread over the events with text."""
    pieces = answer((2.0, ROLE + event("")), (3.0, event("b")), (4.0, event("c")), (5.0, event(None, tokens=3) + DONE))
    [one] = heard([Piece(1.0, request("one"))], pieces)
    assert (one.counted, one.told) == (2, 3)
    assert (one.result.token_s, one.shown_s) == ((2.0, 2.0, 3.0), (2.0, 3.0))
    empty, text = event("", tokens=1), event("b", tokens=2)
    [one] = heard([Piece(1.0, request("one"))], answer((2.0, ROLE + empty), (3.0, text + event(None, tokens=2) + DONE)))
    assert (one.result.token_s, one.shown_s) == ((1.0, 2.0), (2.0,))


def cuts(data: bytes) -> Iterator[list[bytes]]:
    for place in range(1, len(data)):
        yield [data[:place], data[place:]]


def test_bytes_may_be_cut_anywhere() -> None:
    """Whatever is cut comes later by a piece, and nothing is lost or counted twice."""
    sent, text = request("one"), b"".join(piece.data for piece in PLAIN)
    second = text.index(b'"content":"b"')
    for first, rest in cuts(text):
        [one] = heard([Piece(1.0, sent)], [Piece(2.0, first), Piece(3.0, rest)])
        assert (one.counted, one.told, one.result.outcome) == (3, 3, Outcome.COMPLETED)
        if len(first) < second:
            assert one.result.token_s[1] == 2.0
    for first, rest in cuts(sent):
        [one] = heard([Piece(1.0, first), Piece(1.1, rest)], PLAIN)
        assert one.names == {"one", "answer-1"}
        assert one.result.token_s[0] == 1.0


def test_a_byte_at_a_time() -> None:
    text = b"".join(piece.data for piece in PLAIN)
    pieces = [Piece(float(place), text[place : place + 1]) for place in range(len(text))]
    [one] = heard([Piece(0.0, request("one"))], pieces)
    ends = [text.index(b"\n", text.index(mark)) for mark in (b'"content":"a"', b'"content":"b"', b'"content":"c"')]
    assert one.result.token_s == tuple(map(float, ends))


def test_requests_on_one_connection_keep_their_order() -> None:
    sent = [
        Piece(0.5, b"GET /health HTTP/1.1\r\n\r\n"),
        Piece(1.0, request("one")),
        Piece(6.0, request("whole", stream=False)),
        Piece(8.0, request("two")),
    ]
    whole = Piece(7.0, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
    second = [Piece(piece.at_s + 10.0, piece.data) for piece in PLAIN]
    health = Piece(0.6, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    one, two = heard(sent, [health, *PLAIN, whole, *second])
    assert ("one" in one.names, "two" in two.names) == (True, True)
    assert (latencies(one.result).ttft_s, latencies(two.result).ttft_s) == (1.0, 4.0)
    assert (two.result.index, two.result.sent_s) == (1, 7.0)


def test_an_announcement_is_no_answer() -> None:
    [one] = heard([Piece(1.0, request("one"))], [Piece(1.2, b"HTTP/1.1 100 Continue\r\n\r\n"), *PLAIN])
    assert one.counted == 3


def test_running_usage_says_how_many_tokens_a_chunk_has() -> None:
    role = event("", role="assistant", tokens=2)
    pieces = answer(
        (2.0, role + event("ab", tokens=2)), (3.0, event("cde", tokens=5)), (4.0, event(None, tokens=5) + DONE)
    )
    [one] = heard([Piece(1.0, request("one"))], pieces)
    assert one.result.token_s == (1.0, 1.0, 2.0, 2.0, 2.0)
    assert one.counted == one.told == 5


def test_a_count_that_is_not_that_of_the_usage_shows() -> None:
    [one] = heard([Piece(1.0, request("one"))], answer((2.0, event("ab")), (3.0, event(None, tokens=2) + DONE)))
    assert (one.counted, one.told) == (1, 2)
    assert one.result.token_s == (1.0, 1.0)


def test_an_error_amid_a_stream_is_a_failure() -> None:
    error = b'data: {"error": {"code": "worker_lost", "message": "gone"}}\n\n'
    [one] = heard([Piece(1.0, request("one"))], answer((2.0, event("a")), (3.0, error)))
    assert (one.result.outcome, one.counted) == (Outcome.FAILED, 1)
    assert one.result.error == "worker_lost: gone"


def test_a_stream_that_ends_without_its_last_word_has_failed() -> None:
    [one] = heard([Piece(1.0, request("one"))], answer((2.0, event("a"))))
    assert (one.result.outcome, one.counted) == (Outcome.FAILED, 1)
    assert str(one.result.error).startswith("incomplete")


@pytest.mark.parametrize(
    ("status", "code", "outcome"),
    [
        (b"429 Too Many Requests", "overloaded", Outcome.REJECTED),
        (b"503 Service Unavailable", "draining", Outcome.REJECTED),
        (b"503 Service Unavailable", "worker_lost", Outcome.FAILED),
        (b"400 Bad Request", "no", Outcome.FAILED),
    ],
)
def test_an_answer_that_is_no_stream(status: bytes, code: str, outcome: Outcome) -> None:
    body = msgspec.json.encode({"error": {"code": code, "message": "why"}})
    refusal = b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body)
    [one] = heard([Piece(1.0, request("one"))], [Piece(1.1, refusal)])
    assert (one.result.outcome, one.result.token_s, one.told) == (outcome, (), None)
    assert one.result.error == f"{code}: why"


def test_an_abandoned_connection_ends_its_request() -> None:
    begun = answer((2.0, event("a")), ended=False)
    sent = [Piece(1.0, request("one"))]
    [cut_off] = heard(sent, begun, tool_left_s=2.5)
    [lost] = heard(sent, begun, server_left_s=2.5)
    assert (cut_off.result.outcome, cut_off.result.end_s, cut_off.counted) == (Outcome.CUT_OFF, 1.0, 1)
    assert (lost.result.outcome, lost.result.end_s, lost.counted) == (Outcome.FAILED, 1.5, 1)


def test_the_tap_passes_bytes_on_and_notes_who_left() -> None:
    async def reversing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data[::-1])
        writer.close()

    async def scene() -> tuple[bytes, list[Wire], int]:
        server = await asyncio.start_server(reversing, "127.0.0.1", 0)
        async with server, tap("127.0.0.1", server.sockets[0].getsockname()[1]) as recording:
            reader, writer = await asyncio.open_connection("127.0.0.1", int(recording.url.rpartition(":")[2]))
            writer.write(b"abc")
            got = await reader.readexactly(3)
            writer.write(b"de")
            got += await reader.readexactly(2)
            writer.write_eof()
            assert await reader.read() == b""  # the server has ended it, too
            writer.close()
            await writer.wait_closed()
            return got, recording.wires, len(recording.relayed_s)

    got, [wire], relayed = asyncio.run(scene())
    assert got == b"cbaed"
    assert b"".join(piece.data for piece in wire.sent) == b"abcde"
    assert b"".join(piece.data for piece in wire.answered) == b"cbaed"
    assert wire.tool_left_s is not None
    assert wire.server_left_s is None
    assert relayed >= 3  # all but what came before the other side was connected


def test_a_tap_before_a_server_that_is_gone_ends_the_connection() -> None:
    async def scene() -> bytes:
        server = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        async with tap("127.0.0.1", port) as recording:
            reader, writer = await asyncio.open_connection("127.0.0.1", int(recording.url.rpartition(":")[2]))
            try:
                return await reader.read()
            except ConnectionResetError:
                return b""
            finally:
                writer.close()

    assert asyncio.run(scene()) == b""
