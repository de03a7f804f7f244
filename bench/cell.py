"""How does a benchmark run a cell?

As `kvrelay up` does, under a name of its own. Nothing of it is left when the block ends, however it ends; what its
processes printed is shown if the block failed.
"""

import os
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from launch import models
from launch.cell import RunningCell, running_cell
from launch.config import CellOptions
from launch.rundir import base_dir
from launch.supervisor import Observer
from transport.messages.launcher import WorkerProgress

_KEPT_LINES = 60


def mock_options(step_s: float = 0.0) -> CellOptions:
    """The fake engine, which takes `step_s` for a step."""
    return CellOptions(model_dir=None, model_name="mock", fake_step_s=step_s)


def model_options() -> CellOptions:
    """The default model, one prefill and one decode worker; fetches the model if it is not there yet."""
    directory = models.resolve(models.DEFAULT_MODEL, models.default_cache_dir(os.environ, Path.home()))
    return CellOptions(model_dir=str(directory), model_name=models.DEFAULT_MODEL)


@asynccontextmanager
async def cell(
    options: CellOptions,
    on_progress: Callable[[WorkerProgress], None] = lambda _: None,
    show: Callable[[str], None] | None = None,
) -> AsyncIterator[RunningCell]:
    """A cell that serves inside the block.

    Args:
        show: gets every line that a process prints, at once. None: the last ones are shown if the block fails.
    """
    printed: deque[str] = deque(maxlen=_KEPT_LINES)
    keep = show or printed.append
    observer = Observer(
        progress=on_progress,
        log_line=lambda process, line: keep(line if process in line else f"{process}: {line}"),
        notice=keep,
        draining=lambda _: None,
    )
    try:
        async with running_cell(options, base_dir(os.environ), f"bench-{os.getpid()}", observer) as running:
            yield running
    except BaseException:
        print("\n".join(printed), file=sys.stderr)
        raise
