"""How does a test decide when a device ends a step that a worker has begun?

`Device` is a fake engine that runs ahead and computes a step when it ends, not when it is begun; `ScriptedThread` is an
engine thread without threads, on which a test ends one step after the other. So every order of events can be written
down, and happens in the same way each time.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from engine.fake import FakeEngine
from engine.pages import PageAllocator
from engine.port import Row, RowResult
from runtime.clock import Clock

MOST_UNDER_WAY = 2


class Device(FakeEngine):
    """Remembers all steps in `begun`; those of them that have not ended are `under_way`."""

    runs_ahead = True

    def __init__(self, layout: Any, total_pages: int, *, weight: int = 0) -> None:
        super().__init__(layout, total_pages, weight=weight)
        self.begun: list[list[Row]] = []
        self.under_way: deque[list[Row]] = deque()
        self.lost: Exception | None = None  # what the end of a step raises

    def begin(self, rows: Sequence[Row]) -> "PendingOnDevice":
        self.begun.append(list(rows))
        self.under_way.append(list(rows))
        assert len(self.under_way) <= MOST_UNDER_WAY
        return PendingOnDevice(self, rows)

    def end(self, rows: Sequence[Row]) -> list[RowResult]:
        if self.lost is not None:
            raise self.lost
        assert self.under_way[0] == list(rows), "steps end in the order in which they were begun"
        results = super().begin(rows).results()
        self.under_way.popleft()
        return results

    @property
    def busy_pages(self) -> set[int]:
        return {page for rows in self.under_way for row in rows for page in row.pages}


class PendingOnDevice:
    """Its results are computed when they are asked for."""

    def __init__(self, device: Device, rows: Sequence[Row]) -> None:
        self._device = device
        self._rows = rows

    def results(self) -> list[RowResult]:
        return self._device.end(self._rows)


class WatchedPages(PageAllocator):
    """Pages that nobody lets go while a step writes to them."""

    def __init__(self, device: Device) -> None:
        super().__init__(device.total_pages)
        self._device = device

    def release(self, owner: int) -> bool:
        assert self._device.busy_pages.isdisjoint(self.pages(owner)), "a step under way writes to these pages"
        return super().release(owner)


class ScriptedThread:
    """An `engine.thread.EngineThread`: calls take one turn of the loop, and results come when the test says so."""

    def __init__(self) -> None:
        self._outcomes: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()

    async def run(self, fn: Callable[..., Any], *args: Any) -> Any:
        await asyncio.sleep(0)
        return fn(*args)

    async def run_timed(self, clock: Clock, fn: Callable[..., Any], *args: Any) -> tuple[Any, float]:
        began = clock.now()
        return await self.run(fn, *args), clock.now() - began

    def outcome(self, fn: Callable[[], Any]) -> asyncio.Future[Any]:
        result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._outcomes.append((fn, result))
        return result

    async def caught_up(self) -> None:
        await asyncio.sleep(0)  # whoever called before goes on before

    @property
    def is_waiting(self) -> bool:
        return bool(self._outcomes)

    def end_step(self) -> None:
        """The device has ended the oldest step that is under way."""
        fn, result = self._outcomes.popleft()
        try:
            result.set_result(fn())
        except RuntimeError as error:
            result.set_exception(error)

    def close(self) -> None:
        """Nothing runs."""
