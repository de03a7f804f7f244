"""How does a device find its next step when it has ended one?

A device that has ended a step idles until the host has taken the tokens in, planned, made tables and launched. Where
an engine returns from `begin` long before the step has ended (`EnginePort.runs_ahead`), `BackToBack` does that
meanwhile:

- Step N + 1 is begun while step N is under way; step N + 2 is not before step N has been taken in. So two are under way
  at most.
- What both have is fed a token that only the device knows (`Row.follows`).
- Nothing is begun ahead that needs more than that: no chunk of a prompt, no choice that reads its output
  (`SamplingParams.reads_output`). Step N ends first, then, and the next one is planned as it is on a CPU.
- A sequence that step N ends by length is not in step N + 1. One that it ends by a stopping token, or that is
  cancelled, is found out too late: what step N + 1 computes for it is dropped. Its pages are let go when both have
  ended.
- Step N + 1 is planned late in step N: until then arrivals may still join it, afterwards they wait for step N + 2.
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from decode_worker.local import LocalPrompt
from decode_worker.running import RunningSequence
from engine.chunking import Chunk
from engine.port import EnginePort, Row, RowResult
from engine.thread import EngineThread
from runtime.clock import Clock

_PLAN_AT = 0.7
"""When the next step is planned, in lengths of the last one. Not measured: the later, the fewer arrivals wait for one
step more; the earlier, the surer the device has its next step in time. What is left has to suffice for the host."""

_TIMER_S = 0.001  # a timer of the loop may come that late


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """What the loop knows of a step from its plan to its results.

    Attributes:
        sequences, chunks: what it has; `rows` are theirs, in this order.
        began: when it was handed to the engine thread.
        joined: the requests whose first decode step it is.
    """

    sequences: Sequence[RunningSequence]
    chunks: Sequence[Chunk[LocalPrompt]]
    rows: Sequence[Row]
    began: float
    joined: tuple[int, ...]

    def holds(self, request_id: int) -> bool:
        """Whether it writes to the pages of that request."""
        return any(one.request_id == request_id for one in self.sequences) or any(
            chunk.prompt.request_id == request_id for chunk in self.chunks
        )


@dataclass(frozen=True, slots=True)
class _UnderWay:
    step: Step
    results: asyncio.Future[list[RowResult]]


class BackToBack:
    """Decode steps without a gap between them."""

    def __init__(
        self,
        engine: EnginePort,
        thread: EngineThread,
        clock: Clock,
        plan: Callable[[Step], Step | None],
        take_in: Callable[[Step, Sequence[RowResult], float, float], None],
    ) -> None:
        """
        Args:
            plan: the step after one that is under way; None if that has to be taken in first.
            take_in: what follows from a step, given its results, when it started on the device and when it ended.
        """
        self._engine = engine
        self._thread = thread
        self._clock = clock
        self._plan = plan
        self._take_in = take_in
        self._step_s = 0.0  # how long the last step took on the device
        self._ended_at = -math.inf  # when it ended there

    async def run(self, first: Step) -> None:
        """`first`, and as many steps behind it as can be begun ahead; none of them is under way at the end."""
        under_way: _UnderWay | None = await self._begin(first)
        while under_way is not None:
            async with asyncio.TaskGroup() as meanwhile:
                following = meanwhile.create_task(self._follow(under_way))
                results = await under_way.results
                ended, started = self._clock.now(), self._starts(under_way.step)
                self._step_s, self._ended_at = ended - started, ended
                self._take_in(under_way.step, results, started, ended)
            under_way = following.result()

    async def _follow(self, under_way: _UnderWay) -> _UnderWay | None:
        """Begin the next step, unless this one has ended by then, or has to."""
        await self._until(self._starts(under_way.step) + _PLAN_AT * self._step_s - _TIMER_S, under_way.results)
        await self._thread.caught_up()  # as before any step: whose pages are being checked joins
        if under_way.results.done():
            return None
        step = self._plan(under_way.step)
        return None if step is None else await self._begin(step)

    async def _begin(self, step: Step) -> _UnderWay:
        pending = await self._thread.run(self._engine.begin, step.rows)
        return _UnderWay(step, self._thread.outcome(pending.results))

    def _starts(self, step: Step) -> float:
        """When the device gets to it: a step that is begun ahead waits there for the one before it."""
        return max(step.began, self._ended_at)

    async def _until(self, moment: float, results: asyncio.Future[list[RowResult]]) -> None:
        """Until `moment`, or until the results are there."""
        left_s = moment - self._clock.now()
        if left_s <= 0:
            return
        due = asyncio.Event()

        async def ring() -> None:
            await self._clock.sleep(left_s)
            due.set()

        results.add_done_callback(lambda _: due.set())
        alarm = asyncio.create_task(ring())
        try:
            await due.wait()
        finally:
            alarm.cancel()
