"""How does a client get what every process of the cell has recorded?

All workers are asked at once to take their recordings: half of the round trip to the empty first part is when, on our
clock, and how well that is known. Then one part after another is fetched and passed on, never two at a time, so that
streams wait for one part at most. One timeline at a time; a worker that does not answer is left out. Loop thread only.
"""

import asyncio
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from runtime.clock import Clock
from runtime.flight import FlightRecorder, Recording
from transport.control import Sent
from transport.messages.client import TimelineEnd, TimelinePart, ToClient, WorkerStatus
from transport.messages.worker import AskRecording, RecordingPart, ToWorker

ANSWER_S = 2.0
"""The longest wait for a part: longer than a loop is ever held, shorter than a client waits."""


@dataclass(slots=True)
class _Worker:
    status: WorkerStatus
    asked_at: float
    first: RecordingPart | None = None  # part 0
    delay_s: float = 0.0  # the client's question -> this worker took its recording
    uncertainty_s: float = 0.0


@dataclass(slots=True)
class _Timeline:
    timeline_id: int
    send: Callable[[ToClient], Sent]
    asked_at: float
    own: Recording
    workers: dict[str, _Worker] = field(default_factory=dict)  # that have not told all
    missing: list[str] = field(default_factory=list)
    fetching: tuple[str, int] | None = None  # whom we have asked for which part
    waiting_since: float = 0.0
    own_told: int = 0
    late: bool = False  # the last tick found the wait too long


class Timelines:
    """Owns the timeline that is being told."""

    def __init__(self, flight: FlightRecorder, clock: Clock, tell: Callable[[str, ToWorker], None]) -> None:
        self._flight = flight
        self._clock = clock
        self._tell = tell
        self._ids = itertools.count(1)
        self._open: _Timeline | None = None
        self._scheduled = False

    def ask(
        self, last_s: float, workers: Callable[[], Sequence[WorkerStatus]], send: Callable[[ToClient], Sent]
    ) -> None:
        """Tell `send` what the cell did in the last `last_s` seconds; `send` is done with after `TimelineEnd`."""
        if self._open is not None:
            send(TimelineEnd(error="another timeline is being told; try again"))
            return
        now = self._clock.now()
        timeline = self._open = _Timeline(next(self._ids), send, now, self._flight.since(last_s, now))
        timeline.waiting_since = now
        for status in workers():
            asked_at = self._clock.now()
            timeline.workers[status.worker_id] = _Worker(status, asked_at)
            self._tell(status.worker_id, AskRecording(timeline_id=timeline.timeline_id, last_s=last_s, part=0))
        self._soon()

    def told(self, worker_id: str, part: RecordingPart) -> None:
        """A worker has answered; what belongs to no open question is dropped."""
        timeline = self._open
        if timeline is None or part.timeline_id != timeline.timeline_id or worker_id not in timeline.workers:
            return
        now, worker = self._clock.now(), timeline.workers[worker_id]
        timeline.waiting_since = now
        if part.part == 0:
            worker.first = part
            worker.uncertainty_s = (now - worker.asked_at) / 2
            worker.delay_s = worker.asked_at - timeline.asked_at + worker.uncertainty_s
        elif timeline.fetching == (worker_id, part.part):
            self._take(timeline, worker_id, part)
        if timeline.fetching is None:
            self._soon()

    def lost(self, worker_id: str) -> None:
        """Nothing more will come of it."""
        timeline = self._open
        if timeline is not None and worker_id in timeline.workers:
            self._leave_out(timeline, worker_id)
            self._soon()

    def tick(self, now: float) -> None:
        """Leave out whoever has been waited for too long.

        Found in two ticks, one behind the other: if it was this loop that was held, answers are taken in between.
        """
        timeline = self._open
        if timeline is None:
            return
        waits = self._all_own_told(timeline) and now - timeline.waiting_since > ANSWER_S
        timeline.late, was_late = waits, timeline.late
        if not (waits and was_late):
            return
        late = (
            [timeline.fetching[0]]
            if timeline.fetching is not None
            else [name for name, worker in timeline.workers.items() if worker.first is None]
        )
        for name in late:
            self._leave_out(timeline, name)
        timeline.waiting_since = now
        self._soon()

    # --- one part at a time ------------------------------------------------------------------------------------------

    def _soon(self) -> None:
        """Others of the loop have their turn before the next part."""
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        """Fetch or tell the next part, or say that this was all."""
        self._scheduled = False
        timeline = self._open
        if timeline is None or timeline.fetching is not None:
            return
        if not self._all_own_told(timeline):
            self._tell_own(timeline)
            return
        for name, worker in list(timeline.workers.items()):
            if worker.first is None:
                continue
            if worker.first.parts:
                self._fetch(timeline, name, 1)
                return
            self._pass_on(timeline, worker, worker.first)  # it has nothing to tell but that it is there
            del timeline.workers[name]
        if not timeline.workers and self._open is timeline:
            self._open = None
            timeline.send(TimelineEnd(missing=tuple(timeline.missing)))

    def _all_own_told(self, timeline: _Timeline) -> bool:
        return timeline.own_told >= max(timeline.own.parts, 1)

    def _tell_own(self, timeline: _Timeline) -> None:
        part = TimelinePart(
            process="coordinator",
            role="coordinator",
            pid=os.getpid(),
            delay_s=0.0,
            uncertainty_s=0.0,
            reaches_s=timeline.own.reaches_s,
            events=timeline.own.part(timeline.own_told),
        )
        timeline.own_told += 1
        timeline.waiting_since = self._clock.now()
        self._send(timeline, part)
        self._soon()

    def _fetch(self, timeline: _Timeline, worker_id: str, part: int) -> None:
        if self._open is timeline:
            timeline.fetching = (worker_id, part)
            self._tell(worker_id, AskRecording(timeline_id=timeline.timeline_id, last_s=0.0, part=part))

    def _take(self, timeline: _Timeline, worker_id: str, part: RecordingPart) -> None:
        """The part that was fetched."""
        timeline.fetching, worker = None, timeline.workers[worker_id]
        if worker.first is None or part.parts != worker.first.parts:
            self._leave_out(timeline, worker_id)  # its recording is another one by now
            return
        self._pass_on(timeline, worker, part)
        if part.part >= part.parts:
            del timeline.workers[worker_id]
        else:
            self._fetch(timeline, worker_id, part.part + 1)

    def _leave_out(self, timeline: _Timeline, worker_id: str) -> None:
        timeline.missing.append(worker_id)
        del timeline.workers[worker_id]
        if timeline.fetching is not None and timeline.fetching[0] == worker_id:
            timeline.fetching = None

    def _pass_on(self, timeline: _Timeline, worker: _Worker, part: RecordingPart) -> None:
        message = TimelinePart(
            process=worker.status.worker_id,
            role=worker.status.role,
            pid=worker.status.pid,
            delay_s=worker.delay_s,
            uncertainty_s=worker.uncertainty_s,
            reaches_s=part.reaches_s,
            events=part.events,
        )
        self._send(timeline, message)

    def _send(self, timeline: _Timeline, part: TimelinePart) -> None:
        if timeline.send(part) is not Sent.OK:
            self._open = None  # nobody reads it
