"""How long does a bare socket wait for an answer, by two ways that alternate, A B B A?

A process of its own, as the tools are; started by `bench.compat.relaying`. One connection per way, kept open; times
from the send to the first event and to the end, on this process's clock.
"""

import socket
import time

from msgspec import Struct

from bench.child import Channel, serve
from bench.http_load import Load, request_bytes

_EVENT, _END = b"data: ", b"\r\n0\r\n\r\n"
_TIMEOUT_S = 60.0


class Ways(Struct, frozen=True):
    """One request to each port, `rounds` times; who is first alternates, since the second finds the server warmer."""

    ports: tuple[int, int]
    path: str
    body: str
    rounds: int


class Waited(Struct, frozen=True):
    """Seconds, one pair per round, in the order of the ports."""

    first_s: tuple[tuple[float, float], ...]
    whole_s: tuple[tuple[float, float], ...]


def wait(ways: Ways) -> Waited:
    """
    Raises:
        AssertionError: an answer is no stream.
    """
    requests = [request_bytes(Load(port, ways.path, ways.body, ways.rounds, 1, 0)) for port in ways.ports]
    connections = [socket.create_connection(("127.0.0.1", port), _TIMEOUT_S) for port in ways.ports]
    for connection in connections:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    rounds = []
    for number in range(ways.rounds + 1):  # the first makes the connections of the tap, and is left out
        order = (0, 1) if number % 2 == 0 else (1, 0)
        waited = {way: _once(connections[way], requests[way]) for way in order}
        rounds.append((waited[0], waited[1]))
    del rounds[0]
    for connection in connections:
        connection.close()
    return Waited(
        first_s=tuple((direct[0], tapped[0]) for direct, tapped in rounds),
        whole_s=tuple((direct[1], tapped[1]) for direct, tapped in rounds),
    )


def _once(connection: socket.socket, request: bytes) -> tuple[float, float]:
    sent_s, first_s, text = time.monotonic(), None, b""
    connection.sendall(request)
    while not text.endswith(_END):
        data = connection.recv(1 << 16)
        assert data, f"the connection ended after {text[:300]!r}"
        text += data
        if first_s is None and _EVENT in text:
            first_s = time.monotonic() - sent_s
    assert first_s is not None, f"not a stream: {text[:300]!r}"
    return first_s, time.monotonic() - sent_s


async def _main(channel: Channel) -> None:
    while True:
        channel.send(wait(await channel.receive(Ways)))


if __name__ == "__main__":
    serve(_main)
