"""How does the launcher follow and steer the cell?

One ROUTER socket with one peer. Loop thread only. The launcher may be absent (processes started by hand): then nobody
is told.
"""

from collections.abc import Callable

from runtime import logs
from transport import codec
from transport.control import Context, ControlServer
from transport.errors import ProtocolError
from transport.messages.common import PROTOCOL_VERSION
from transport.messages.launcher import LauncherHello, ToCoordinator, ToLauncher

_log = logs.get("launcher")


class LauncherLink:
    def __init__(
        self,
        context: Context,
        endpoint: str,
        on_message: Callable[[ToCoordinator], None],
    ) -> None:
        self._codec = codec.coordinator_side_of_launcher_link()
        self._peer: bytes | None = None
        self._on_message = on_message
        self._server = ControlServer(context, endpoint, self._received)

    def send(self, message: ToLauncher) -> None:
        if self._peer is not None:
            self._server.send(self._peer, self._codec.encode(message))

    def close(self) -> None:
        self._server.close()

    def _received(self, identity: bytes, data: bytes) -> None:
        try:
            message = self._codec.decode(data)
        except ProtocolError as error:
            _log.error("not a launcher's message", extra={"fields": {"why": str(error)}})
            return
        if isinstance(message, LauncherHello) and message.protocol == PROTOCOL_VERSION:
            self._peer = identity
        if identity == self._peer:
            self._on_message(message)
