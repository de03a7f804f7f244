"""How does a test say over a socket what no client library would, and read what comes back?"""

import contextlib
import json
import socket
import time
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    rest: bytes = b""  # what followed on the connection

    def json(self) -> Any:
        return json.loads(self.body)


def request(path: str, body: object = None, *, method: str | None = None, close: bool = True, **headers: str) -> bytes:
    """One request; `body` is sent as it is if it is bytes, and as JSON otherwise. `_` in header names means `-`."""
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    told = {"host": "localhost"}
    if body is not None:
        told |= {"content-type": "application/json", "content-length": str(len(data))}
    told |= {"connection": "close"} if close else {}
    told |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in told.items())
    verb = method or ("GET" if body is None else "POST")
    return f"{verb} {path} HTTP/1.1\r\n{lines}\r\n".encode() + data


def connect(port: int, timeout_s: float = 15.0) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=timeout_s)


def say(port: int, data: bytes, timeout_s: float = 15.0) -> bytes:
    """Send `data` and read until the server closes; a server that has heard enough may stop listening before.

    Raises:
        TimeoutError: it neither closes nor says more.
    """
    with connect(port, timeout_s) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(data)
        return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    data = bytearray()
    while True:
        try:
            piece = connection.recv(1 << 16)
        except ConnectionResetError:
            return bytes(data)
        if not piece:
            return bytes(data)
        data += piece


def read_until(connection: socket.socket, mark: bytes, times: int = 1, within_s: float = 15.0) -> bytes:
    """Until `mark` has come so many times, or the end."""
    data = bytearray()
    deadline = time.monotonic() + within_s
    while data.count(mark) < times:
        assert time.monotonic() < deadline, (mark, bytes(data[-200:]))
        piece = connection.recv(1 << 14)
        if not piece:
            break
        data += piece
    return bytes(data)


def parse(data: bytes) -> Answer:
    """The first response in `data`."""
    head, separator, rest = data.partition(b"\r\n\r\n")
    assert separator, f"no response: {data[:200]!r}"
    status, *lines = head.decode("latin-1").split("\r\n")
    version, code, _reason = status.split(" ", 2)
    assert version == "HTTP/1.1", status
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        body, rest = _unchunk(rest)
    else:
        length = int(headers.get("content-length", len(rest)))
        body, rest = rest[:length], rest[length:]
    return Answer(int(code), headers, body, rest)


def ask(port: int, data: bytes, timeout_s: float = 15.0) -> Answer:
    return parse(say(port, data, timeout_s))


def events(data: bytes) -> list[bytes]:
    """The data of each complete server-sent event in a streamed body, however its chunks were cut."""
    return [line.removeprefix(b"data: ") for line in data.split(b"\n\n")[:-1] if line.startswith(b"data: ")]


def _unchunk(data: bytes) -> tuple[bytes, bytes]:
    body = bytearray()
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size or b"0", 16)
        if length == 0:
            return bytes(body), data.removeprefix(b"\r\n")
        body += data[:length]
        data = data[length + 2 :]
    return bytes(body), b""
