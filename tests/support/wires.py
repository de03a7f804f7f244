"""How does a test connect to the HTTP front's connections without a socket?"""

import asyncio
from typing import Any, cast

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from coordinator.config import HttpLimits
from coordinator.http.connection import Connection, connections
from coordinator.http.counters import HttpCounters
from coordinator.http.front import LIMITS
from tests.support.asgi import settle

GET = b"GET /%s HTTP/1.1\r\nhost: x\r\n\r\n"
HEAD_TIMEOUT_S = 0.05


class Wire(asyncio.Transport):
    """A transport whose other end is the test."""

    def __init__(self) -> None:
        super().__init__()
        self.data = b""
        self.protocol: asyncio.Protocol | None = None
        self.closed = False
        self.aborted = False
        self.unread = 0

    def write(self, data: Any) -> None:
        assert not self.closed
        self.data += data

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            assert self.protocol is not None
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def abort(self) -> None:
        self.aborted = True
        self.close()

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        """Whoever is at the other end takes everything at once, unless a test says otherwise."""
        return self.unread

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    @property
    def answers(self) -> list[tuple[int, bytes]]:
        """Status and body of each answer."""
        found, rest = [], self.data
        while rest:
            head, _, rest = rest.partition(b"\r\n\r\n")
            line, *headers = head.split(b"\r\n")
            length = next(
                int(value) for name, value in (one.split(b": ", 1) for one in headers) if name == b"content-length"
            )
            found.append((int(line.split()[1]), rest[:length]))
            rest = rest[length:]
        return found


class Server:
    """Connections to an application that answers with its path when `go` is set; `left` are those whose client left."""

    def __init__(self, **limits: Any) -> None:
        self.counters = HttpCounters(limits=LIMITS)
        self.go = asyncio.Event()
        self.go.set()
        self.left: list[str] = []
        self.asked: list[str] = []
        self.bodies: list[bytes] = []
        self._state = ServerState()
        self._config = uvicorn.Config(
            self._app,
            interface="asgi3",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_keep_alive=5,
        )
        self._make = connections(
            HttpLimits(head_timeout_s=HEAD_TIMEOUT_S, **{"max_head_bytes": 1000, **limits}), self.counters
        )

    def connect(self) -> tuple[Wire, Connection]:
        wire = Wire()
        connection = cast(Connection, self._make(self._config, self._state, {}))
        wire.protocol = connection
        connection.connection_made(wire)
        return wire, connection

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        self.asked.append(path)
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.left.append(path)
                return
            body, more = body + message["body"], message["more_body"]
        self.bodies.append(body)
        watch = asyncio.ensure_future(receive())
        wait = asyncio.ensure_future(self.go.wait())
        watch.add_done_callback(lambda _: wait.cancel())
        try:
            await wait
        except asyncio.CancelledError:
            self.left.append(path)
            return
        said = path.encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(said))]})
        await send({"type": "http.response.body", "body": said})

    async def end(self, *wires: Wire) -> None:
        self.go.set()
        await settle()
        for wire in wires:
            wire.close()
        await settle()
        assert self.counters.open_connections == 0
        assert not self._state.connections
        assert not self._state.tasks
