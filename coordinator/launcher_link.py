"""How does the launcher follow and steer the cell?

One ROUTER socket with one peer. Loop thread only. The launcher may be absent (processes started by hand): then nobody
is told.
"""

from collections import deque
from collections.abc import Callable

from runtime import logs
from transport import codec
from transport.control import Context, ControlServer
from transport.errors import ProtocolError
from transport.messages.common import PROTOCOL_VERSION
from transport.messages.launcher import LauncherHello, ToCoordinator, ToLauncher

_MAX_EARLY = 1000
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
        self._early: deque[bytes] = deque(maxlen=_MAX_EARLY)  # what the workers said before the launcher did
        self._on_message = on_message
        self._server = ControlServer(context, endpoint, self._received)

    def send(self, message: ToLauncher) -> None:
        data = self._codec.encode(message)
        if self._peer is None:
            self._early.append(data)
        else:
            self._server.send(self._peer, data)

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
            for early in self._early:
                self._server.send(identity, early)
            self._early.clear()
        if identity == self._peer:
            self._on_message(message)
