"""How do the coordinator's parts hang together, and what does its clock drive?

The shell around `service`: three links, one timer, the readiness of the cell and its drain. Loop thread only.
"""

import asyncio

from coordinator.client_link import ClientLink
from coordinator.config import CoordinatorConfig
from coordinator.events import DrainAsked, Stopped, Ticked
from coordinator.http.front import HttpFront
from coordinator.launcher_link import LauncherLink
from coordinator.links import is_slow, is_staged
from coordinator.service import Service
from coordinator.text import Text
from coordinator.worker_link import WorkerLink
from runtime import logs
from runtime.clock import Clock
from runtime.process import new_epoch
from transport.control import Context
from transport.messages.launcher import (
    ClusterReady,
    Drain,
    Drained,
    DrainProgress,
    LauncherHello,
    LinkSummary,
    ToCoordinator,
    WorkerExited,
    WorkerExpired,
    WorkerProgress,
    WorkerRejected,
    WorkerSummary,
)
from transport.messages.worker import Loading

_TICK_S = 0.1
_log = logs.get("coordinator")


class Coordinator:
    def __init__(self, config: CoordinatorConfig, text: Text, context: Context, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._launcher = LauncherLink(context, config.launcher_endpoint, self._from_launcher)
        self._workers = WorkerLink(
            context, config.worker_endpoint, new_epoch(), clock, self._loading, self._worker_rejected
        )
        self.service = Service(config, text, clock, self._workers.tell)
        self._workers.attach(self.service)
        self._clients = ClientLink(context, self.service, clock, self._workers.status)
        self._http = None
        if config.http is not None:
            self._http = HttpFront(config.http, self.service, clock, self._workers.status)
        self._links_told: set[tuple[str, str]] = set()
        self._complete = False  # every expected worker is there and linked
        self._drained = False

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set (SIGTERM, or the launcher's death)."""
        if self._http is not None:
            self._http.start()
        next_beat = self._clock.now()
        while not stop.is_set():
            now = self._clock.now()
            if now >= next_beat:
                self._workers.beat()
                next_beat = now + self._config.worker_heartbeat_s
            for worker_id in self._workers.expired(now):
                self._launcher.send(WorkerExpired(worker_id=worker_id))
            self.service.handle(Ticked())
            self.service.timelines.tick(now)
            self._clients.tick(now)
            if self._http is not None:
                self._http.tick(now)
            self._look_at_readiness()
            self._look_at_drain()
            await self._clock.sleep(_TICK_S)
        self.service.handle(Stopped())
        if self._http is not None:
            await self._http.stop()
        self._workers.shut_down()
        self._clients.close()
        self._workers.close()
        self._launcher.close()

    # --- readiness ---------------------------------------------------------------------------------------------------

    def _look_at_readiness(self) -> None:
        cell = self.service.machine.cell
        prefills, decodes = cell.of_role("prefill"), cell.of_role("decode")
        for link in self._links():
            pair = (link.prefill, link.decode)
            if pair not in self._links_told:
                self._links_told.add(pair)
                self._tell_of(link)
        self._links_told &= {(p.worker_id, decode_id) for p in prefills for decode_id in p.links}
        enough = len(prefills) == self._config.prefill_workers and len(decodes) == self._config.decode_workers
        complete = enough and all(len(prefill.links) == len(decodes) for prefill in prefills)
        if complete and not self._complete:
            self._clients.ready()
            self._launcher.send(self._ready_message())
        self._complete = complete

    def _links(self) -> list[LinkSummary]:
        return [
            LinkSummary(
                prefill=prefill.worker_id,
                decode=decode_id,
                transport=test.transport,
                gigabytes_per_s=test.gigabytes_per_s,
                memcpy_gigabytes_per_s=test.memcpy_gigabytes_per_s,
                slow=is_slow(test),
                staged=is_staged(test),
            )
            for prefill in self.service.machine.cell.of_role("prefill")
            for decode_id, test in sorted(prefill.links.items())
        ]

    def _tell_of(self, link: LinkSummary) -> None:
        fields = {
            "from": link.prefill,
            "to": link.decode,
            "transport": link.transport,
            "gb_per_s": link.gigabytes_per_s,
            "memcpy_gb_per_s": link.memcpy_gigabytes_per_s,
        }
        if link.staged:
            _log.warning("KV PAGES GO THROUGH THE HOST: see docs/operations.md", extra={"fields": fields})
        elif link.slow:
            _log.warning("SLOW KV LINK: far below a memory copy; see docs/operations.md", extra={"fields": fields})
        else:
            _log.info("kv link tested", extra={"fields": fields})

    def _ready_message(self) -> ClusterReady:
        model = self.service.model
        return ClusterReady(
            model=self._config.model,
            max_model_len=model.max_model_len if model is not None else 0,
            workers=tuple(
                WorkerSummary(
                    worker_id=worker.worker_id,
                    role=worker.role,
                    epoch=worker.peer.epoch,
                    total_pages=worker.pool.total_pages,
                    page_tokens=worker.pool.page_tokens,
                    page_bytes=worker.pool.page_bytes,
                )
                for worker in self.service.machine.cell.workers.values()
            ),
            links=tuple(self._links()),
            http_port=self._http.port if self._http is not None else None,
        )

    # --- the launcher ------------------------------------------------------------------------------------------------

    def _from_launcher(self, message: ToCoordinator) -> None:
        match message:
            case LauncherHello():
                self._complete = False  # tell it again
            case WorkerExited(worker_id=worker_id):
                self._workers.lost(worker_id, "its process ended")
            case Drain():
                self.service.handle(DrainAsked())

    def _look_at_drain(self) -> None:
        if not self.service.machine.cell.draining or self._drained:
            return
        self._launcher.send(DrainProgress(in_flight=self.service.in_flight))
        if self.service.idle and (self._http is None or self._http.idle):
            self._drained = True
            self._launcher.send(Drained())

    def _loading(self, message: Loading) -> None:
        self._launcher.send(WorkerProgress(worker_id=message.worker_id, stage=message.stage, fraction=message.fraction))

    def _worker_rejected(self, worker_id: str, reason: str) -> None:
        self._launcher.send(WorkerRejected(worker_id=worker_id, reason=reason))
