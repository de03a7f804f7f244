"""How does the loop thread use the engine without waiting for it?

One thread computes; the loop awaits. Everything that touches pages runs there, one call at a time, in the order of the
calls. Where a device computes, that thread is free while a step is under way, and takes the next calls; another one,
which does nothing else, waits for the results then. An exception reaches the caller, who ends the process: the engine's
state is unknown after it (ADR-0008).
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from runtime.clock import Clock

P = ParamSpec("P")
T = TypeVar("T")


class EngineThread:
    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._waiter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="results")  # none before a call
        self._awaited = 0

    async def run(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`fn(*args)` on the engine thread. Cancelling the await does not stop a call that has started."""
        self._awaited += 1
        try:
            return await asyncio.wrap_future(self._executor.submit(fn, *args, **kwargs))
        finally:
            self._awaited -= 1

    async def run_timed(self, clock: Clock, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[T, float]:
        """As `run`, with the seconds that the call took on the engine thread; the rest of the await was waiting."""

        def timed() -> tuple[T, float]:
            began = clock.now()
            result = fn(*args, **kwargs)
            return result, clock.now() - began

        return await self.run(timed)

    def outcome(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """`fn(*args)`, which waits for the device and computes nothing, on the thread for that, behind earlier ones.

        The engine thread takes calls meanwhile, and `caught_up` does not wait for this one.
        """
        return asyncio.wrap_future(self._waiter.submit(fn, *args, **kwargs))

    async def caught_up(self) -> None:
        """Until whoever awaits a call now has its result and has gone on; at once when nobody does."""
        if self._awaited:
            await self.run(_nothing)  # calls return in the order in which they were made

    def close(self) -> None:
        """Wait for the running calls; calls that have not started are cancelled."""
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._waiter.shutdown(wait=True, cancel_futures=True)


def _nothing() -> None:
    pass
