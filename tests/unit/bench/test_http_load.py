import asyncio

import pytest

from bench.http_load import Load, Reader, request_bytes

LOAD = Load(port=1, path="/v1/chat/completions", body='{"stream":true}', requests=2, streams=1, tokens=3)
HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
ANSWER = (
    HEAD
    + b'7\r\ndata: {"role"}\n\ndata: {"a"}\n\n\r\n7\r\ndata: {"b"}\n\n\r\n7\r\ndata: {"c"}\n\n\r\n'
    + b'7\r\ndata: {"usage":{"prompt_tokens":4,"completion_tokens":3}}\n\ndata: [DONE]\n\n\r\n0\r\n\r\n'
)


class Connection(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    def close(self) -> None:
        self.closed = True


async def read(*parts: bytes, requests: int = 1) -> tuple[Reader, Connection]:
    connection = Connection()
    reader = Reader(LOAD, iter(range(requests)), asyncio.get_running_loop().create_future())
    reader.connection_made(connection)
    for part in parts:
        reader.data_received(part)
    return reader, connection


@pytest.mark.parametrize("size", [1, 2, 5, 7, 64, len(ANSWER)])
def test_events_are_counted_however_they_are_cut(size: int) -> None:
    async def main() -> None:
        parts = [ANSWER[i : i + size] for i in range(0, len(ANSWER), size)]
        if size < len(HEAD):
            parts = [HEAD, *(ANSWER[i : i + size] for i in range(len(HEAD), len(ANSWER), size))]
        reader, connection = await read(*parts)
        assert reader.done.done()
        assert reader.done.exception() is None
        assert reader.events == 6
        assert connection.closed

    asyncio.run(main())


def test_a_connection_takes_one_request_after_the_other() -> None:
    async def main() -> None:
        reader, connection = await read(ANSWER, ANSWER, requests=2)
        assert connection.written == [request_bytes(LOAD)] * 2
        assert reader.events == 12
        assert reader.done.done()

    asyncio.run(main())


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        ANSWER.replace(b'"completion_tokens":3', b'"completion_tokens":2'),
        HEAD + b'7\r\ndata: {"error":{}}\n\n\r\n0\r\n\r\n',
    ],
)
def test_another_answer_is_an_error(answer: bytes) -> None:
    async def main() -> None:
        reader, _ = await read(answer)
        with pytest.raises(AssertionError):
            reader.done.result()

    asyncio.run(main())


def test_a_request_is_plain_http() -> None:
    head, _, body = request_bytes(LOAD).partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
    assert f"content-length: {len(body)}".encode() in head
    assert body == LOAD.body.encode()
