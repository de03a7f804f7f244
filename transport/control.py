"""How do control messages travel between processes?

ZeroMQ: the coordinator binds one ROUTER per link, everybody else connects a DEALER. Bytes in, bytes out; `codec` gives
them meaning. Loop thread only. Sockets are driven by their file descriptor and drained without blocking, because a
future per message is what costs most at thousands of tokens a second. This is the only module that imports zmq.

Delivery: ZeroMQ keeps the order of one connection and loses messages only together with the connection. A ROUTER drops
messages for a peer it does not know unless told otherwise; ours is told, and says so (`Sent.UNREACHABLE`).
"""

import asyncio
from collections.abc import Callable
from enum import Enum, auto
from typing import TypeAlias

import zmq

from transport.errors import PeerLost
from transport.messages.common import MAX_MESSAGE_BYTES

Context: TypeAlias = zmq.Context[zmq.Socket[bytes]]
"""One per process; others name it without importing zmq."""

_HIGH_WATER_MESSAGES = 20_000
_DRAIN_BURST = 256  # messages handled before other callbacks of the loop get their turn


class Sent(Enum):
    OK = auto()
    FULL = auto()  # the peer does not read; try again later
    UNREACHABLE = auto()  # the peer is gone


def new_context() -> Context:
    return zmq.Context(io_threads=1)


class _Socket:
    """A zmq socket drained on the loop whenever it has input."""

    def __init__(self, context: Context, kind: int, high_water: int) -> None:
        self.raw = context.socket(kind)
        self.raw.setsockopt(zmq.LINGER, 1000)  # the last messages of a process that ends in good order still leave
        self.raw.setsockopt(zmq.SNDHWM, high_water)
        self.raw.setsockopt(zmq.RCVHWM, high_water)
        self.raw.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        self._loop = asyncio.get_running_loop()
        self._fd = int(self.raw.getsockopt(zmq.FD))
        self._on_frames: Callable[[list[bytes]], None] | None = None
        self._scheduled = False

    def start(self, on_frames: Callable[[list[bytes]], None]) -> None:
        self._on_frames = on_frames
        self._loop.add_reader(self._fd, self._drain)
        self.wake()

    def wake(self) -> None:
        """zmq's descriptor is edge-triggered: after a send, input may wait without a new edge."""
        if not self._scheduled and self._on_frames is not None:
            self._scheduled = True
            self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        self._scheduled = False
        if self.raw.closed or self._on_frames is None:
            return
        for _ in range(_DRAIN_BURST):
            try:
                frames = self.raw.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._on_frames(frames)
            if self.raw.closed:
                return
        self.wake()

    def send(self, frames: list[bytes]) -> Sent:
        try:
            self.raw.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return Sent.FULL
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return Sent.UNREACHABLE
        finally:
            self.wake()
        return Sent.OK

    def close(self) -> None:
        if not self.raw.closed:
            self._loop.remove_reader(self._fd)
            self.raw.close()


class ControlServer:
    """The coordinator's end of a link: many peers, each named by the identity that ZeroMQ gave its connection."""

    def __init__(
        self,
        context: Context,
        endpoint: str,
        on_message: Callable[[bytes, bytes], None],
        *,
        high_water: int = _HIGH_WATER_MESSAGES,
    ) -> None:
        self._socket = _Socket(context, zmq.ROUTER, high_water)
        self._socket.raw.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.raw.bind(endpoint)
        self.endpoint = self._socket.raw.getsockopt_string(zmq.LAST_ENDPOINT)
        self._on_message = on_message
        self.malformed = 0  # messages with a wrong number of frames
        self._socket.start(self._received)

    def _received(self, frames: list[bytes]) -> None:
        if len(frames) != 2:
            self.malformed += 1
            return
        self._on_message(frames[0], frames[1])

    def send(self, peer: bytes, *messages: bytes) -> Sent:
        """All of `messages` or none of them, as one message of several frames."""
        return self._socket.send([peer, *messages])

    def close(self) -> None:
        self._socket.close()


class ControlClient:
    """The other end: one connection to the coordinator."""

    def __init__(self, context: Context, endpoint: str, on_message: Callable[[bytes], None]) -> None:
        self._socket = _Socket(context, zmq.DEALER, _HIGH_WATER_MESSAGES)
        self._socket.raw.connect(endpoint)
        self._on_message = on_message
        self._socket.start(self._received)

    def _received(self, frames: list[bytes]) -> None:
        for frame in frames:
            self._on_message(frame)

    def send(self, data: bytes) -> None:
        """
        Raises:
            PeerLost: the coordinator has not read for thousands of messages.
        """
        if self._socket.send([data]) is not Sent.OK:
            raise PeerLost("the coordinator does not read its messages")

    def close(self) -> None:
        self._socket.close()
