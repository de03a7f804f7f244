"""Which bytes went between a tool and a server, and when?

A relay: it passes bytes on as they come, in the pieces in which they come, and notes on one clock when each piece came.
It understands nothing; `bench.compat.exchanges` does, afterwards, so that nothing but the relaying lies between a tool
and the server. asyncio sets TCP_NODELAY on both sides.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple


class Piece(NamedTuple):
    at_s: float  # when it came, on the tap's clock
    data: bytes


@dataclass(slots=True)
class Wire:
    """One connection of a tool."""

    sent: list[Piece] = field(default_factory=list)  # by the tool
    answered: list[Piece] = field(default_factory=list)  # by the server
    tool_left_s: float | None = None  # who ended it, and when; None: the other side did, or nobody yet
    server_left_s: float | None = None

    def tool_ended(self) -> None:
        """Unless it is known who ended the connection."""
        if self.server_left_s is None and self.tool_left_s is None:
            self.tool_left_s = time.monotonic()

    def server_ended(self) -> None:
        """Likewise."""
        if self.tool_left_s is None and self.server_left_s is None:
            self.server_left_s = time.monotonic()


@dataclass(slots=True)
class Recording:
    """What a tap has heard, and what it cost."""

    url: str
    wires: list[Wire] = field(default_factory=list)
    relayed_s: list[float] = field(default_factory=list)  # per piece: from its arrival until it was written on

    def clear(self) -> None:
        """Forget it; of a connection that is still open nothing more is kept."""
        self.wires.clear()
        self.relayed_s.clear()


@asynccontextmanager
async def tap(host: str, port: int) -> AsyncIterator[Recording]:
    """Listens on this machine, on a port of its own, and relays to `host` and `port` inside the block."""
    recording = Recording(url="")
    opened: set[asyncio.Transport] = set()
    opening: set[asyncio.Task[None]] = set()
    loop = asyncio.get_running_loop()

    def accept() -> _End:
        """The side of the tool, which opens the side of the server once it is there."""
        wire = Wire()
        recording.wires.append(wire)
        back = _End(recording, opened, wire.answered, wire.server_ended)

        def open_back() -> None:
            task = loop.create_task(_open(front, back, (host, port)))
            opening.add(task)
            task.add_done_callback(opening.discard)

        front = _End(recording, opened, wire.sent, wire.tool_ended, open_back)
        return front

    server = await loop.create_server(accept, "127.0.0.1", 0)
    recording.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield recording
    finally:
        server.close()
        for transport in opened:
            transport.abort()


class _End(asyncio.Protocol):
    """One of the two connections of a wire; what arrives here leaves by `other`."""

    def __init__(
        self,
        recording: Recording,
        opened: set[asyncio.Transport],
        heard: list[Piece],
        ended: Callable[[], None],
        made: Callable[[], None] = lambda: None,
    ) -> None:
        self._recording = recording
        self._opened = opened
        self._heard = heard
        self._ended = ended
        self._made = made
        self._early: list[bytes] = []  # came before the other side was connected
        self._over = False  # nothing more will arrive
        self.other: _End | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # what TCP has
        self.transport = transport
        self._opened.add(transport)
        self._made()

    def data_received(self, data: bytes) -> None:
        at_s = time.monotonic()
        self._heard.append(Piece(at_s, data))
        if self.other is None:
            self._early.append(data)
            return
        self.other.transport.write(data)
        self._recording.relayed_s.append(time.monotonic() - at_s)

    def join(self, other: "_End") -> None:
        self.other = other
        other.transport.writelines(self._early)
        self._early.clear()
        if self._over:
            other.transport.write_eof()

    def eof_received(self) -> bool:
        """The other direction may go on, until it has come to its end, too."""
        self._over = True
        self._ended()
        if self.other is None:
            return True
        if not self.other.transport.is_closing():
            self.other.transport.write_eof()
        if self.other._over:
            self.other.transport.close()
        return not self.other._over

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - what asyncio calls
        self._ended()
        self._opened.discard(self.transport)
        if self.other is not None:
            self.other.transport.close()


async def _open(front: _End, back: _End, address: tuple[str, int]) -> None:
    try:
        await asyncio.get_running_loop().create_connection(lambda: back, *address)
    except OSError:
        front.transport.abort()  # as the server itself would refuse
        return
    if front.transport.is_closing():
        back.transport.close()
        return
    back.join(front)
    front.join(back)
