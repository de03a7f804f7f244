"""How do end-to-end tests start real cells, and how do they see that nothing is left of them?"""

import asyncio
import itertools
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from launch.cell import RunningCell, running_cell
from launch.client import StreamingClient
from launch.config import CellOptions
from launch.supervisor import Observer
from transport.messages.client import CellStatus

_numbers = itertools.count()


def mock_options(**changes: object) -> CellOptions:
    return CellOptions(model_dir=None, model_name="mock", **changes)  # type: ignore[arg-type]  # a test's changes


class Recorder:
    """Keeps what a cell says, so that a failing test can show it."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def observer(self) -> Observer:
        return Observer(
            progress=lambda message: self.lines.append(f"{message.worker_id}: {message.stage}"),
            log_line=lambda process, line: self.lines.append(f"{process}| {line}"),
            notice=self.lines.append,
            draining=lambda count: self.lines.append(f"draining {count}"),
        )

    def __str__(self) -> str:
        return "\n".join(self.lines)


@asynccontextmanager
async def cell(options: CellOptions, recorder: Recorder | None = None) -> AsyncIterator[RunningCell]:
    """A running cell with a name of its own; what it printed is shown if the block raises."""
    recorder = recorder or Recorder()
    name = f"test-{os.getpid()}-{next(_numbers)}"
    base = Path(f"/tmp/kvrelay-test-{os.getuid()}")
    try:
        async with running_cell(options, base, name, recorder.observer()) as running:
            yield running
    except BaseException:
        print(recorder)  # noqa: T201 - pytest shows it with the failure
        raise


async def all_pages_back(client: StreamingClient, within_s: float = 10.0) -> CellStatus:
    """Wait until every page of every worker is free again.

    Raises:
        AssertionError: they are not, after `within_s`.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while True:
        status = await client.status()
        if status.in_flight == 0 and status.workers and all(w.free_pages == w.total_pages for w in status.workers):
            return status
        assert loop.time() < deadline, f"pages are still held: {status}"
        await asyncio.sleep(0.2)


def processes_of(marker: str) -> list[int]:
    """Ids of the live processes whose command line contains `marker`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                state = (entry / "stat").read_text().rsplit(") ", 1)[1][0]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if marker in command and state != "Z":
                found.append(int(entry.name))
    return found


def shared_memory() -> set[str]:
    """POSIX and System V shared-memory segments of this machine."""
    posix = {f"posix {path.name}" for path in Path("/dev/shm").iterdir()} if Path("/dev/shm").is_dir() else set()
    table = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    return posix | {f"sysv {line.split()[1]}" for line in table}


def start_launcher(name: str, *arguments: str, base: Path) -> subprocess.Popen[str]:
    """`kvrelay up` as a user starts it, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", "from launch.cli import main; main()", "up", "--name", name, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_RUNTIME_DIR": str(base)},
    )
