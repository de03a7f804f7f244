"""How does `kvrelay up` end?

It serves until the first Ctrl-C or SIGTERM, drains, and stops at the second one. Until the cell serves there is nothing
to drain, and the first one stops it.
"""

import asyncio
import signal
from dataclasses import dataclass
from pathlib import Path

from launch.cell import running_cell
from launch.config import CellOptions
from launch.display import CellDisplay


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
            display.ready(cell)
            display.suggest(cell, name, needs_key=options.http is not None and bool(options.http.api_key_digests))
            wishes.serving.set()
            await cell.supervisor.serve_until(wishes.drain)
            async with asyncio.timeout(wishes.drain_timeout_s):
                await cell.supervisor.drain()
