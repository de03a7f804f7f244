"""How do workers reach the coordinator?

One ROUTER socket. This shell checks Hello, keeps the table of who is alive, turns messages into events of the machine
and carries its orders to the workers. Loop thread only.
"""

from collections.abc import Callable

from coordinator.events import (
    DecodeLetGo,
    Event,
    FirstTokenMade,
    PrefillLetGo,
    SelfTested,
    TokensMade,
    WorkerJoined,
    WorkerLost,
)
from coordinator.service import Service
from runtime import logs
from runtime.clock import Clock
from transport import codec
from transport.control import Context, ControlServer, Sent
from transport.errors import ProtocolError
from transport.liveness import Liveness
from transport.messages.client import WorkerStatus
from transport.messages.common import PROTOCOL_VERSION
from transport.messages.worker import (
    Beat,
    Heartbeat,
    Hello,
    Loading,
    Prefilled,
    PrefillReleased,
    RecordingPart,
    Rejected,
    Released,
    SelfTestDone,
    Shutdown,
    ToCoordinator,
    Tokens,
    ToWorker,
    Welcome,
)

_log = logs.get("workers")


class WorkerLink:
    """Owns the directory of connections: identity <-> worker."""

    def __init__(
        self,
        context: Context,
        endpoint: str,
        epoch: int,
        clock: Clock,
        on_loading: Callable[[Loading], None],
        on_rejected: Callable[[str, str], None],
    ) -> None:
        self._service: Service | None = None
        self._epoch = epoch
        self._clock = clock
        self._on_loading = on_loading
        self._on_rejected = on_rejected
        self._codec = codec.coordinator_side_of_worker_link()
        self._identities: dict[str, bytes] = {}
        self._workers: dict[bytes, str] = {}
        self._beats: dict[str, Heartbeat] = {}
        self._pids: dict[str, int] = {}
        self._liveness: Liveness[str] | None = None
        self._server = ControlServer(context, endpoint, self._received)

    def attach(self, service: Service) -> None:
        """The service tells workers through us, and we tell it of workers; it is made second."""
        self._service = service
        self._liveness = Liveness(service.config.worker_timeout_s)

    def tell(self, worker_id: str, message: ToWorker) -> None:
        identity = self._identities.get(worker_id)
        if identity is None:
            return  # lost a moment ago; the machine will hear of it, or has already
        if self._server.send(identity, self._codec.encode(message)) is not Sent.OK:
            self.lost(worker_id, "it does not take its messages")

    def beat(self) -> None:
        for worker_id in list(self._identities):
            self.tell(worker_id, Beat())

    def expired(self, now: float) -> list[str]:
        """Workers that have just been given up because they were silent."""
        silent = self._alive.expired(now)
        for worker_id in silent:
            self.lost(worker_id, f"silent for more than {self._alive.timeout_s:.1f} s")
        return silent

    def lost(self, worker_id: str, reason: str) -> None:
        identity = self._identities.pop(worker_id, None)
        if identity is None:
            return
        del self._workers[identity]
        self._beats.pop(worker_id, None)
        self._alive.forget(worker_id)
        _log.warning("worker lost", extra={"fields": {"worker": worker_id, "why": reason}})
        self._cell.timelines.lost(worker_id)
        self._cell.handle(WorkerLost(worker_id, reason))

    def status(self) -> tuple[WorkerStatus, ...]:
        """Every worker that has beaten at least once, as it last described itself."""
        workers = self._cell.machine.cell.workers
        return tuple(
            WorkerStatus(
                worker_id=worker_id,
                role=workers[worker_id].role,
                pid=self._pids[worker_id],
                total_pages=workers[worker_id].pool.total_pages,
                free_pages=beat.free_pages,
                reserved_pages=beat.reserved_pages,
                quarantined_pages=beat.quarantined_pages,
                running=beat.running,
                waiting=beat.waiting,
            )
            for worker_id, beat in sorted(self._beats.items())
            if worker_id in workers
        )

    def shut_down(self) -> None:
        for worker_id in list(self._identities):
            self.tell(worker_id, Shutdown())

    def close(self) -> None:
        self._server.close()

    @property
    def _cell(self) -> Service:
        if self._service is None:
            raise AssertionError("a worker spoke before the service was attached")
        return self._service

    @property
    def _alive(self) -> Liveness[str]:
        if self._liveness is None:
            raise AssertionError("a worker spoke before the service was attached")
        return self._liveness

    # --- from workers ------------------------------------------------------------------------------------------------

    def _received(self, identity: bytes, data: bytes) -> None:
        try:
            message = self._codec.decode(data)
        except ProtocolError as error:
            # Workers run our own code: a malformed message is a bug or a stranger; neither may go on as a worker.
            _log.error("not a worker's message", extra={"fields": {"why": str(error)}})
            speaker = self._workers.get(identity, "unknown")
            self._reject(identity, speaker, f"protocol error: {error}")
            self.lost(speaker, "it does not speak this protocol")
            return
        worker_id = self._workers.get(identity)
        if isinstance(message, Hello):
            self._hello(identity, message)
        elif isinstance(message, Loading):
            self._on_loading(message)
        elif worker_id is not None:
            self._alive.saw(worker_id, self._clock.now())
            if isinstance(message, Heartbeat):
                self._beats[worker_id] = message
                self._check_conservation(worker_id, message)
            elif isinstance(message, RecordingPart):
                self._cell.timelines.told(worker_id, message)
            else:
                self._cell.handle(_event(worker_id, message))

    def _hello(self, identity: bytes, hello: Hello) -> None:
        worker_id = hello.peer.worker_id
        reason = self._why_not(hello)
        if reason is not None:
            self._reject(identity, worker_id, reason)
            return
        self.lost(worker_id, "restarted")  # if an older incarnation is still in the table
        self._identities[worker_id] = identity
        self._workers[identity] = worker_id
        self._pids[worker_id] = hello.pid
        self._alive.saw(worker_id, self._clock.now())
        self._cell.model = hello.model
        config = self._cell.config
        welcome = Welcome(
            coordinator_epoch=self._epoch, heartbeat_s=config.worker_heartbeat_s, timeout_s=config.worker_timeout_s
        )
        self.tell(worker_id, welcome)
        if worker_id in self._identities:  # else it is gone already
            self._cell.handle(WorkerJoined(hello.role, hello.peer, hello.pool, hello.max_batch))

    def _why_not(self, hello: Hello) -> str | None:
        """Why this worker cannot join the cell, or None."""
        if hello.protocol != PROTOCOL_VERSION:
            return f"it speaks protocol {hello.protocol}, the coordinator {PROTOCOL_VERSION}: use the same release"
        for other in self._cell.machine.cell.workers.values():
            if other.pool.fingerprint != hello.pool.fingerprint:
                return (
                    f"its KV layout differs from that of {other.worker_id}: same model, dtype and page size everywhere"
                )
        if self._cell.model is not None and self._cell.model != hello.model:
            return f"it serves {hello.model}, the cell {self._cell.model}"
        return None

    def _reject(self, identity: bytes, worker_id: str, reason: str) -> None:
        _log.error("worker rejected", extra={"fields": {"worker": worker_id, "why": reason}})
        self._server.send(identity, self._codec.encode(Rejected(reason=reason[:2000])))
        self._on_rejected(worker_id, reason[:2000])

    def _check_conservation(self, worker_id: str, beat: Heartbeat) -> None:
        """When nothing is held of a worker, its pool and our credits must agree to the page.

        Messages of one worker arrive in order, so a Heartbeat after a Released sees the pool as that left it.
        """
        worker = self._cell.machine.cell.workers[worker_id]
        total = beat.free_pages + beat.reserved_pages + beat.quarantined_pages
        if total != worker.pool.total_pages:
            raise AssertionError(f"{worker_id} accounts for {total} of its {worker.pool.total_pages} pages")
        testing = any(worker_id in (test.prefill, test.decode) for test in self._cell.machine.cell.link_tests.values())
        if worker.role == "decode" and not worker.requests and not testing and beat.free_pages != worker.free_pages:
            raise AssertionError(f"{worker_id} has {beat.free_pages} free pages, its credits say {worker.free_pages}")


def _event(worker_id: str, message: ToCoordinator) -> Event:
    match message:
        case Prefilled():
            return FirstTokenMade(worker_id, message.request_id, message.token, message.finish)
        case PrefillReleased():
            return PrefillLetGo(worker_id, message.request_id, message.quarantined_pages, message.stages, message.error)
        case Tokens(steps=steps):
            return TokensMade(worker_id, steps)
        case Released():
            return DecodeLetGo(
                worker_id,
                message.request_id,
                message.quarantined_pages,
                message.stages,
                message.error,
                message.prefill,
            )
        case SelfTestDone(error=error):
            if error is not None:
                _log.warning(
                    "self-test failed; it is tried again", extra={"fields": {"worker": worker_id, "why": error}}
                )
            return SelfTested(worker_id, message)
        case _:
            raise AssertionError(f"{type(message).__name__} is no event")
