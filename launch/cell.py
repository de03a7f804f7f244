"""How does one command run a whole cell, from the first process to the last?

`serve` is `kvrelay up`; `running_cell` lends a cell to a block of code (the demo, the benchmarks, the tests).
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from launch.config import CellOptions
from launch.display import CellDisplay
from launch.placement import Placement, place
from launch.rundir import RunDir, client_endpoint
from launch.supervisor import Observer, Supervisor
from runtime.clock import SystemClock
from transport.control import new_context
from transport.messages.launcher import ClusterReady


@dataclass(frozen=True, slots=True)
class RunningCell:
    endpoint: str  # for `launch.client.StreamingClient`
    ready: ClusterReady
    supervisor: Supervisor
    placement: Placement


def available_cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))


@asynccontextmanager
async def running_cell(options: CellOptions, base: Path, name: str, observer: Observer) -> AsyncIterator[RunningCell]:
    """A cell that serves inside the block and leaves nothing behind after it.

    Raises:
        launch.supervisor.CellFailed: it cannot start.
        launch.rundir.CellInUse: a cell of this name runs already.
    """
    run_dir = RunDir(base, name)
    context = new_context()
    try:
        placement = place(available_cores(), options.prefill, options.decode)
        supervisor = Supervisor(options, run_dir.path, placement, context, SystemClock(), observer)
        try:
            ready = await supervisor.start()
            yield RunningCell(client_endpoint(run_dir.path), ready, supervisor, placement)
        finally:
            await supervisor.stop()
    finally:
        context.destroy(linger=0)
        run_dir.remove()


@dataclass(frozen=True, slots=True)
class _Wishes:
    """How far a cell has come, and what the person at the terminal wants of it."""

    serving: asyncio.Event
    drain: asyncio.Event
    drain_timeout_s: float


async def serve(options: CellOptions, base: Path, name: str, display: CellDisplay, drain_timeout_s: float) -> None:
    """Run a cell until the first Ctrl-C or SIGTERM, drain it, and stop at the second one.

    Raises:
        launch.supervisor.CellFailed: it cannot start or cannot go on.
        TimeoutError: requests were still in flight after `drain_timeout_s` of draining.
    """
    wishes = _Wishes(asyncio.Event(), asyncio.Event(), drain_timeout_s)
    loop = asyncio.get_running_loop()
    work = loop.create_task(_serve(options, base, name, display, wishes))

    def on_signal() -> None:
        if wishes.serving.is_set() and not wishes.drain.is_set():
            wishes.drain.set()
        else:  # nothing to drain yet, or asked for the second time
            work.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, on_signal)
    try:
        await work
    except asyncio.CancelledError:
        if not work.cancelled():
            raise


async def _serve(options: CellOptions, base: Path, name: str, display: CellDisplay, wishes: _Wishes) -> None:
    with display:
        async with running_cell(options, base, name, display.observer()) as cell:
            display.ready(cell, name)
            wishes.serving.set()
            await cell.supervisor.serve_until(wishes.drain)
            async with asyncio.timeout(wishes.drain_timeout_s):
                await cell.supervisor.drain()
