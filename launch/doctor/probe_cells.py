"""Which cells run, who holds the HTTP port, and how fast is a link of a cell that is started for a moment?"""

import asyncio
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from launch.cell import running_cell
from launch.config import CellOptions
from launch.doctor.facts import CellFacts, LinkFacts, PortFacts
from launch.ports import PortHolder
from launch.rundir import CellInUse, is_running
from launch.supervisor import CellFailed, Observer
from runtime.sockets import bound_socket

_LOOPBACK = "127.0.0.1"
_OTHER_PORTS = 100
_KV_BYTES_PER_TOKEN = 4096  # the prefill pool is 32 MB then, and a self-test moves 16 of them: enough for a verdict
_LAST_LINES = 8


def cells(base: Path) -> CellFacts:
    names = sorted(entry.name for entry in base.iterdir() if entry.is_dir()) if base.is_dir() else []
    return CellFacts(directory=str(base), running=tuple(name for name in names if is_running(base, name)))


def port(number: int, is_free: Callable[[int], bool], holder: Callable[[int], PortHolder | None]) -> PortFacts:
    if is_free(number):
        return PortFacts(port=number, free=True)
    others = range(number + 1, min(number + _OTHER_PORTS, 65536))
    return PortFacts(
        port=number,
        free=False,
        holder=holder(number),
        free_port=next((other for other in others if is_free(other)), None),
    )


def port_is_free(number: int) -> bool:
    """Whether a server could listen there now; connections that have ended recently are no obstacle."""
    try:
        with bound_socket(_LOOPBACK, number) as probe:
            probe.listen(1)
    except OSError:
        return False
    return True


async def link(base: Path, timeout_s: float) -> LinkFacts:
    """Start a mock cell of its own name, take what its self-test measured, and end it.

    SIGTERM and SIGHUP cancel it, so that nothing is left of the cell.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    if task is not None:
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, task.cancel)
    lines: deque[str] = deque(maxlen=_LAST_LINES)
    observer = Observer(
        progress=lambda _: None,
        log_line=lambda process, line: lines.append(f"{process}: {line}"),
        notice=lines.append,
        draining=lambda _: None,
    )
    options = CellOptions(model_dir=None, model_name="mock", fake_kv_bytes_per_token=_KV_BYTES_PER_TOKEN)
    name = "doctor"  # always the same, so that the next one clears up what a killed one left
    if is_running(base, name):
        name = f"doctor-{os.getpid()}"
    started = time.monotonic()
    try:
        async with asyncio.timeout(timeout_s), running_cell(options, base, name, observer) as cell:
            ready_after_s = time.monotonic() - started
            found = cell.ready.links[0]
    except TimeoutError:
        return LinkFacts(error=f"it was not ready after {timeout_s:g} s", last_lines=tuple(lines))
    except (CellInUse, OSError, ValueError) as error:
        return LinkFacts(error=str(error), unusable_directory=str(base))
    except CellFailed as error:
        why, *tail = str(error).splitlines() or ["it does not say why"]
        told = [line.strip() for line in tail if line.strip(" ^~")]  # not the marks below the lines of a traceback
        return LinkFacts(error=why, last_lines=tuple(told[-_LAST_LINES:]))
    return LinkFacts(
        ready_after_s=ready_after_s,
        transport=found.transport,
        gigabytes_per_s=found.gigabytes_per_s,
        memcpy_gigabytes_per_s=found.memcpy_gigabytes_per_s,
        slow=found.slow,
    )
