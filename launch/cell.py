"""How does a block of code borrow a whole cell, and return it without a trace?

Used by `kvrelay up` (`launch.serve`), the demo, the benchmarks and the tests.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from launch.config import CellOptions
from launch.http_options import base_url
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
    api: str | None  # base URL of the HTTP front


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
        placement = place(available_cores(), options.prefill_workers, options.decode_workers)
        supervisor = Supervisor(options, run_dir.path, placement, context, SystemClock(), observer)
        try:
            ready = await supervisor.start()
            http = options.http
            api = None if http is None or ready.http_port is None else base_url(http.host, ready.http_port)
            yield RunningCell(client_endpoint(run_dir.path), ready, supervisor, placement, api)
        finally:
            await supervisor.stop()
    finally:
        context.destroy(linger=0)
        run_dir.remove()
