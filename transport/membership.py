"""How does a worker belong to a cell?

It connects to the coordinator, tells of its loading, says Hello, beats, and notices when the coordinator falls silent.
Both kinds of worker hold one of these. Loop thread only.
"""

import asyncio
from collections.abc import Callable

from runtime.clock import Clock
from transport import codec
from transport.control import Context, ControlClient
from transport.errors import PeerLost, ProtocolMismatch
from transport.messages.worker import (
    Beat,
    Heartbeat,
    Hello,
    Loading,
    Rejected,
    Shutdown,
    ToCoordinator,
    ToWorker,
    Welcome,
)

WELCOME_TIMEOUT_S = 30.0


class Membership:
    def __init__(self, context: Context, endpoint: str, worker_id: str, clock: Clock) -> None:
        self._codec = codec.worker_side()
        self._client = ControlClient(context, endpoint, self._received)
        self._worker_id = worker_id
        self._clock = clock
        self._handler: Callable[[ToWorker], None] | None = None
        self._welcome: asyncio.Future[Welcome] = asyncio.get_running_loop().create_future()
        self._last_heard = clock.now()
        self._shutdown = asyncio.Event()

    def send(self, message: ToCoordinator) -> None:
        self._client.send(self._codec.encode(message))

    def loading(self, stage: str, fraction: float | None = None) -> None:
        self.send(Loading(worker_id=self._worker_id, stage=stage, fraction=fraction))

    async def serve(
        self, hello: Hello, handler: Callable[[ToWorker], None], heartbeat: Callable[[], Heartbeat], stop: asyncio.Event
    ) -> None:
        """Say Hello, then beat until `stop` is set or the coordinator sends Shutdown.

        `handler` gets every message that is about requests and peers, in order, on the loop thread.

        Raises:
            ProtocolMismatch: the coordinator refuses this worker.
            PeerLost: the coordinator does not answer, or has fallen silent.
        """
        self._handler = handler
        self.send(hello)
        try:
            async with asyncio.timeout(WELCOME_TIMEOUT_S):
                welcome = await self._welcome
        except TimeoutError as error:
            raise PeerLost(f"the coordinator did not answer Hello within {WELCOME_TIMEOUT_S:.0f} s") from error
        while not stop.is_set() and not self._shutdown.is_set():
            silent_s = self._clock.now() - self._last_heard
            if silent_s > welcome.timeout_s:
                raise PeerLost(f"the coordinator has been silent for {silent_s:.1f} s")
            self.send(heartbeat())
            await self._clock.sleep(welcome.heartbeat_s)

    def close(self) -> None:
        self._client.close()

    def _received(self, data: bytes) -> None:
        self._last_heard = self._clock.now()
        message = self._codec.decode(data)
        match message:
            case Welcome():
                if not self._welcome.done():
                    self._welcome.set_result(message)
            case Rejected(reason=reason):
                if not self._welcome.done():
                    self._welcome.set_exception(ProtocolMismatch(reason))
            case Beat():
                pass
            case Shutdown():
                self._shutdown.set()
            case _:
                if self._handler is not None:
                    self._handler(message)
