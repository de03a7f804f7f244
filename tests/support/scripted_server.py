"""How does a test say to a client exactly what it wants, when it wants?"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from launch.client import StreamingClient
from transport import codec
from transport.control import Context, ControlServer, new_context
from transport.messages.client import (
    AskStatus,
    CellStatus,
    ClientHello,
    Goodbye,
    Ping,
    Pong,
    ToClient,
    ToCoordinator,
    Welcome,
)
from transport.messages.common import PROTOCOL_VERSION

WELCOME = Welcome(
    protocol=PROTOCOL_VERSION,
    model="m",
    max_model_len=64,
    prefill_workers=1,
    decode_workers=1,
    client_timeout_s=60.0,
)
STATUS = CellStatus(workers=(), queued=1, in_flight=2)


class ManualClock:
    """Stands still until a test moves it; its `sleep` sleeps for real."""

    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class ScriptedServer:
    """A coordinator with one client, over a real socket. It remembers what it heard and says what it is told.

    Only small talk (Hello, Ping, AskStatus) is answered by itself, unless `answers` is False.
    """

    def __init__(self, context: Context, endpoint: str, timeout_s: float = 60.0) -> None:
        self.heard: list[ToCoordinator] = []
        self.answers = True
        self.hellos_ignored = 0
        self.welcome: Welcome | Goodbye = msgspec.structs.replace(WELCOME, client_timeout_s=timeout_s)
        self._codec = codec.coordinator_side_of_client_link()
        self._peer = b""
        self._changed = asyncio.Event()
        self._server = ControlServer(context, endpoint, self._received)

    def say(self, *messages: ToClient) -> None:
        for message in messages:
            self.say_bytes(self._codec.encode(message))

    def say_bytes(self, data: bytes) -> None:
        self._server.send(self._peer, data)

    async def hears(self, kind: type[ToCoordinator], count: int = 1) -> None:
        """Until so many messages of this kind have come."""
        while sum(isinstance(message, kind) for message in self.heard) < count:
            self._changed.clear()
            await self._changed.wait()

    def close(self) -> None:
        self._server.close()

    def _received(self, peer: bytes, data: bytes) -> None:
        self._peer = peer
        message = self._codec.decode(data)
        self.heard.append(message)
        self._changed.set()
        if not self.answers:
            return
        match message:
            case ClientHello() if self.hellos_ignored > 0:
                self.hellos_ignored -= 1
            case ClientHello():
                self.say(self.welcome)
            case Ping():
                self.say(Pong())
            case AskStatus():
                self.say(STATUS)


Body = Callable[[ScriptedServer, StreamingClient, ManualClock], Awaitable[None]]


def play(tmp_path: Path, body: Body, *, timeout_s: float = 60.0) -> None:
    """Run `body` with a client that has been welcomed."""

    async def main(context: Context) -> None:
        endpoint = f"ipc://{tmp_path}/s"
        clock = ManualClock()
        server = ScriptedServer(context, endpoint, timeout_s)
        async with asyncio.timeout(30), StreamingClient(endpoint, clock=clock) as client:
            await body(server, client, clock)
        server.close()

    context = new_context()
    try:
        asyncio.run(main(context))
    finally:
        context.destroy(linger=0)
