"""What does the coordinator's flight recorder keep?

The phases of every request as the machine has them, and the queue and the credits between two events. Pure: it looks at
the state after each event and never changes it.
"""

from collections.abc import Sequence

from coordinator.events import Action, Emit, Event, Submitted, Tell, WorkerLost
from coordinator.state import CellState, Phase
from runtime import flight


class CellFlight(flight.FlightRecorder):
    def __init__(self, cell: CellState, capacity: int = flight.CAPACITY) -> None:
        super().__init__(capacity)
        self._cell = cell
        self._open: dict[int, tuple[Phase, float]] = {}  # phase of each request that has not ended, and since when
        self._pages_of: dict[str, str] = {}  # the gauge of each decode worker: made once, not with every token

    def saw(self, event: Event, actions: Sequence[Action], now: float) -> None:
        """The machine has handled `event` and decided on `actions`."""
        if isinstance(event, Submitted):
            self._open[event.request_id] = (Phase.QUEUED, now)
        for action in actions:
            if isinstance(action, Emit) and action.index > 1 and action.finish is None:
                continue  # most tokens: they come in the middle of a phase
            subject = action.message if isinstance(action, Tell) else action
            request_id: int | None = getattr(subject, "request_id", None)  # workers are told of other things, too
            if request_id in self._open:
                self._look_at(request_id, now)
        self.gauge("queued", len(self._cell.queue), now)
        self.gauge("open requests", len(self._open), now)
        if isinstance(event, WorkerLost) and (name := self._pages_of.pop(event.worker_id, None)) is not None:
            self.drop_gauge(name, now)
        for worker in self._cell.of_role("decode"):
            name = self._pages_of.get(worker.worker_id)
            if name is None:
                name = self._pages_of[worker.worker_id] = f"unspent pages of {worker.worker_id}"
            self.gauge(name, worker.free_pages, now)

    def since(self, last_s: float, now: float) -> flight.Recording:
        """Phases that go on are part of it, as long as they have lasted so far."""
        recording = super().since(last_s, now)
        still = tuple(
            flight.InPhase(now - began, request_id, phase.value, still=True)
            for request_id, (phase, began) in self._open.items()
        )
        return flight.Recording(
            taken_at=now,
            reaches_s=recording.reaches_s,
            ended=(*recording.ended, *(now for _ in still)),
            events=(*recording.events, *still),
        )

    def _look_at(self, request_id: int, now: float) -> None:
        before, began = self._open[request_id]
        record = self._cell.requests.get(request_id)
        phase = record.phase if record is not None else Phase.ENDED
        if phase is before:
            return
        self.record(now, flight.InPhase(now - began, request_id, before.value))
        if phase is Phase.ENDED:
            del self._open[request_id]
        else:
            self._open[request_id] = (phase, now)
