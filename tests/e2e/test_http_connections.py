"""What may clients do with their connections, and what does it cost the others?

Leave at any moment, close one half, never read, come in hundreds, ask for a million tokens, forge names: the next
request is answered, and no page stays behind.
"""

import contextlib
import hashlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from engine.fake import fake_tokens
from tests.support.http_cells import HostedCell, assert_api_error, hosted, mock_http
from tests.support.raw_http import ask, connect, events, parse, read_all, read_until, request, say

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
KEY = "sk-of-a-test"
CONNECTIONS = 1000
STEP_S = 0.01
ENDLESS = {"prompt": [1] * 30, "max_tokens": 2000, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def cell() -> Iterator[HostedCell]:
    limits = {"max_connections": CONNECTIONS, "stall_s": 2.0, "idle_timeout_s": 5.0}
    with hosted(mock_http(limits, fake_step_s=STEP_S, decode_kv_tokens=200_000)) as running:
        before = running.pids()
        yield running
        running.pages_back()
        assert running.pids() == before


def works(cell: HostedCell, tokens: int = 4) -> None:
    prompt = [5, 6, 7]
    answer = ask(cell.port, request(TEXT, {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True}), 30.0)
    assert answer.status == 200, answer.body
    assert answer.json()["choices"][0]["text"].encode() == bytes(fake_tokens(prompt, tokens))


@pytest.mark.parametrize("path", [TEXT, CHAT])
def test_a_client_that_leaves_at_any_chunk_is_cancelled(cell: HostedCell, path: str) -> None:
    """By a close and by a reset, before the first byte and after the k-th event."""
    body = ENDLESS if path == TEXT else {**ENDLESS, "messages": [{"role": "user", "content": "y"}]}
    for count in (0, 1, 2, 3, 10, 50):
        for reset in (False, True):
            with connect(cell.port) as connection:
                connection.sendall(request(path, body))
                read_until(connection, b"data: ", count)
                if count:
                    assert cell.status().in_flight == 1
                if reset:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            cell.until_in_flight(0, within_s=5.0)
    works(cell)


def test_a_client_that_leaves_while_it_waits_for_a_whole_answer_is_cancelled(cell: HostedCell) -> None:
    for shut in (False, True):
        with connect(cell.port) as connection:
            connection.sendall(request(TEXT, {**ENDLESS, "stream": False, "n": 3}))
            cell.until_in_flight(3)
            if shut:  # half a close counts as one: who needs the answer keeps both halves open
                connection.shutdown(socket.SHUT_WR)
                assert read_all(connection) == b""
        cell.until_in_flight(0, within_s=5.0)


def test_a_client_that_never_reads_is_cut_off(cell: HostedCell) -> None:
    """When its buffers have been full for `stall_s`; so is one that is owed nothing but small answers."""
    with connect(cell.port) as connection, connect(cell.port) as greedy:
        for one in (connection, greedy):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wordy = {"prompt": [[1] * 30] * 16, "n": 8, "max_tokens": 1500, "ignore_eos": True, "stream": True}
        connection.sendall(request(TEXT, {**wordy, "logprobs": 1, "return_token_ids": True}))
        cell.until_in_flight(128)
        cell.until_in_flight(0, within_s=30.0)
        works(cell)
        stalled = _stalled_readers(cell)
        greedy.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            greedy.sendall(request("/openapi.json", close=False) * 2000)
        deadline = time.monotonic() + 15
        while _stalled_readers(cell) == stalled:
            assert time.monotonic() < deadline, "it holds its connection by not reading"
            time.sleep(0.1)
        works(cell)


def test_requests_of_one_connection_are_answered_in_order(cell: HostedCell) -> None:
    prompts = [[i] * 3 for i in range(20)]
    batch = b"".join(
        request(TEXT, {"prompt": p, "max_tokens": 3, "ignore_eos": True, "stream": i % 2 == 1}, close=i == 19)
        for i, p in enumerate(prompts)
    )
    said = say(cell.port, batch)
    for i, prompt in enumerate(prompts):
        answer = parse(said)
        said = answer.rest
        text = bytes(fake_tokens(prompt, 3)).decode()
        if i % 2 == 0:
            assert answer.json()["choices"][0]["text"] == text
        else:
            assert events(answer.body)[-1] == b"[DONE]"
            assert len(events(answer.body)) == 4


def test_a_flood_of_pipelined_requests_does_not_fill_the_memory(cell: HostedCell) -> None:
    """Requests behind one that is being answered wait in the socket, not in the server."""
    resident = cell.coordinator_bytes()
    with connect(cell.port) as connection:
        connection.sendall(request(TEXT, ENDLESS, close=False))
        read_until(connection, b"data: ")
        connection.settimeout(1.0)
        with contextlib.suppress(TimeoutError, OSError):
            for _ in range(40):
                connection.sendall(request("/live", close=False, x="y" * 1000) * 1000)  # 1 MB each
        assert cell.coordinator_bytes() - resident < 20 << 20
    cell.until_in_flight(0, within_s=5.0)
    works(cell)


def test_http_1_0_head_and_an_absolute_target(cell: HostedCell) -> None:
    old = parse(say(cell.port, b"GET /live HTTP/1.0\r\n\r\n"))
    assert (old.status, old.headers["connection"]) == (200, "close")
    head = parse(say(cell.port, request("/live", method="HEAD")))
    assert (head.status, head.body) == (200, b"")
    assert int(head.headers["content-length"]) > 0
    assert (
        parse(say(cell.port, b"GET http://other/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).status == 200
    )
    wait = request(TEXT, {"prompt": "x", "max_tokens": 1}, expect="100-continue")
    said = say(cell.port, wait)
    assert said.startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert parse(said.split(b"\r\n\r\n", 1)[1]).status == 200


def test_a_thousand_idle_connections_are_the_limit(cell: HostedCell) -> None:
    with contextlib.ExitStack() as open_ones:
        idle = [open_ones.enter_context(connect(cell.port)) for _ in range(CONNECTIONS)]
        refused = parse(say(cell.port, request("/live")))
        assert refused.status == 503
        assert assert_api_error(refused.status, refused.body)["code"] == "too_many_connections"
        idle[500].sendall(request(TEXT, {"prompt": [1], "max_tokens": 2, "ignore_eos": True}))
        assert parse(read_all(idle[500])).status == 200
    deadline = time.monotonic() + 10
    while parse(say(cell.port, request("/live"))).status != 200:
        assert time.monotonic() < deadline
    works(cell)


def test_five_hundred_requests_at_once(cell: HostedCell) -> None:
    """Each is answered with its own tokens."""

    def one(i: int) -> None:
        prompt = [i % 256, i // 256]
        body = {"prompt": prompt, "max_tokens": 3, "ignore_eos": True, "stream": i % 3 == 0}
        answer = ask(cell.port, request(TEXT, body), 60.0)
        assert answer.status == 200, answer.body
        if i % 3:
            assert answer.json()["choices"][0]["text"].encode() == bytes(fake_tokens(prompt, 3))
        else:
            assert events(answer.body)[-1] == b"[DONE]"

    with ThreadPoolExecutor(50) as pool:
        list(pool.map(one, range(500)))


HUGE = [
    ("text", {"prompt": "word " * 1_000_000}),
    ("ids", {"prompt": [1] * 1_000_000}),
    ("prompts", b'{"prompt": [' + b",".join([b'""'] * 1_000_000) + b"]}"),
    ("messages", {"messages": [{"role": "user", "content": "word " * 250}] * 4000}),
    ("keys", b'{"prompt": "x"' + b"".join(b', "k%06d": 1' % i for i in range(400_000)) + b"}"),
]


@pytest.mark.parametrize(("name", "body"), HUGE, ids=[name for name, _ in HUGE])
def test_a_million_tokens_are_refused_without_holding_up_a_stream(cell: HostedCell, name: str, body: object) -> None:
    """The longest silence of another stream while five of them arrive, one after the other."""
    gaps: list[float] = []
    done = threading.Event()
    running = threading.Event()

    def listen() -> None:
        with connect(cell.port) as connection:
            connection.sendall(request(TEXT, ENDLESS))
            read_until(connection, b"data: ", 3)
            last = time.monotonic()
            running.set()
            while not done.is_set():
                assert connection.recv(1 << 16)
                now = time.monotonic()
                gaps.append(now - last)
                last = now

    data = request(CHAT if name == "messages" else TEXT, body)
    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(listen)
        try:
            assert running.wait(20)
            for _ in range(5):
                began = time.monotonic()
                answer = ask(cell.port, data)
                assert answer.status == 400, answer.body[:300]
                assert_api_error(answer.status, answer.body)
                assert time.monotonic() - began < 5
        finally:
            done.set()
        stream.result(20)
    assert max(gaps) < 1.5, sorted(gaps)[-5:]  # 4 s for prompts before their number was checked first
    cell.until_in_flight(0, within_s=5.0)


TRICKS = [
    "/metrics", "/v1/models", "//v1/models", "/v1//models", "/v1/../metrics", "/health/../metrics", "/openapi.json",
    "/health/%2e%2e/metrics", "/%2e/metrics", "/live/", "/live%2f..%2fmetrics", "/LIVE", "/health;/metrics", "/docs",
    "/health%00/metrics", "/live/../v1/models", "/v1/models/..%2f..%2flive", "http://localhost/metrics",
    "/metrics?path=/health",
]  # fmt: skip


def test_no_way_of_writing_a_path_gets_around_the_key() -> None:
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    http = {"api_key_digests": (digest,), "allowed_hosts": ("localhost", "[::1]")}
    with hosted(mock_http(http=http)) as cell:
        for path in TRICKS:
            answer = ask(cell.port, request(path))
            assert answer.status == 401, (path, answer)
            assert assert_api_error(answer.status, answer.body)["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
        for header in ("", "Bearer", "Bearer ", f"Basic {KEY}", f"Bearer {KEY}x", f"Bearer {'k' * 50_000}", KEY):
            assert ask(cell.port, request("/metrics", authorization=header)).status == 401, header[:30]
        forged = request("/metrics", x_forwarded_for="127.0.0.1", x_original_url="/live", x_rewrite_url="/live")
        assert ask(cell.port, forged).status == 401
        assert ask(cell.port, request("/metrics", authorization=f"Bearer {KEY}")).status == 200
        assert ask(cell.port, request("/metrics", authorization=f"bearer   {KEY} ")).status == 200
        for path in ("/live", "/health", "/ready"):
            assert ask(cell.port, request(path)).status == 200
        for host in ("evil.example", "localhost.evil.example", "127.0.0.1", "", "[::1", "localhost@evil"):
            answer = ask(cell.port, request("/live", host=host))
            assert answer.status == 403, (host, answer)
            assert_api_error(answer.status, answer.body)
        for host in ("localhost", "LOCALHOST:8000", f"localhost:{cell.port}", "[::1]:80"):
            assert ask(cell.port, request("/live", host=host)).status == 200, host
        assert ask(cell.port, b"GET /live HTTP/1.1\r\nconnection: close\r\n\r\n").status == 403


def _stalled_readers(cell: HostedCell) -> str:
    """How many were cut off, as the metrics say."""
    metrics = ask(cell.port, request("/metrics")).body.decode().splitlines()
    return next(line for line in metrics if 'limit="reader_stall"' in line)
