"""How does the launcher keep a cell's processes alive, and how does it end them?

It starts the coordinator and the workers, tells the coordinator when a worker process has ended, restarts workers under
their old name, and ends everything when it is told to, when the coordinator ends or when a worker cannot even start.
Children run in sessions of their own, so that a Ctrl-C in the terminal reaches only us, and die with us by the kernel's
hand (`runtime.process.die_with_parent`). Loop thread only.
"""

import asyncio
import os
import signal
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.config import CellOptions, coordinator_config, worker_configs
from launch.placement import Placement
from launch.rundir import launcher_endpoint
from runtime import config
from runtime.clock import Clock
from transport import codec
from transport.control import Context, ControlClient
from transport.messages.common import PROTOCOL_VERSION
from transport.messages.launcher import (
    ClusterReady,
    Drain,
    Drained,
    DrainProgress,
    LauncherHello,
    ToLauncher,
    WorkerExited,
    WorkerExpired,
    WorkerProgress,
    WorkerRejected,
)

_RESTART_DELAY_S = 0.5
_MAX_RESTART_DELAY_S = 30.0
_EXIT_GRACE_S = 5.0
_TAIL_LINES = 30
COORDINATOR = "coordinator"


class CellFailed(Exception):
    """The cell cannot start or cannot go on; the text says why, with the last lines of the process concerned."""


@dataclass(slots=True)
class _Child:
    name: str
    module: str
    config_path: Path
    process: asyncio.subprocess.Process | None = None
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=_TAIL_LINES))
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class Observer:
    """Who wants to know how the cell is doing; called on the loop thread."""

    progress: Callable[[WorkerProgress], None]
    log_line: Callable[[str, str], None]  # process, line
    notice: Callable[[str], None]
    draining: Callable[[int], None]  # requests still in flight


class Supervisor:
    def __init__(
        self,
        options: CellOptions,
        cell: Path,
        placement: Placement,
        context: Context,
        clock: Clock,
        observer: Observer,
    ) -> None:
        self._options = options
        self._clock = clock
        self._observer = observer
        self._cell = cell
        self._codec = codec.launcher_side()
        self._children = _prepare(options, cell, placement)
        self._ready: asyncio.Future[ClusterReady] = _observed_future()
        self._drained: asyncio.Future[None] = _observed_future()
        self._failed: asyncio.Future[None] = _observed_future()
        self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._link = ControlClient(context, launcher_endpoint(cell), self._received)

    async def start(self) -> ClusterReady:
        """Start every process and wait until the cell serves.

        Raises:
            CellFailed: a process ended or was refused before that.
        """
        for child in self._children.values():
            await self._spawn(child)
        self._tell(
            LauncherHello(
                protocol=PROTOCOL_VERSION,
                prefill_workers=self._options.prefill_workers,
                decode_workers=self._options.decode_workers,
            )
        )
        return await asyncio.shield(self._ready)

    async def serve_until(self, drain: asyncio.Event) -> None:
        """Keep the cell alive until `drain` is set.

        Raises:
            CellFailed: the coordinator ended.
        """
        async with asyncio.TaskGroup() as tasks:
            watch = tasks.create_task(self._wait_for_failure())
            await drain.wait()
            watch.cancel()

    async def _wait_for_failure(self) -> None:
        await asyncio.shield(self._failed)

    async def drain(self) -> None:
        """Let the requests in flight end; new ones are refused from now on.

        Raises:
            CellFailed: the coordinator ended before they did.
        """
        self._tell(Drain())
        await asyncio.shield(self._drained)

    async def stop(self) -> None:
        """End every process: politely, then by force. Leaves none behind."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        coordinator = self._children[COORDINATOR].process
        if coordinator is not None and coordinator.returncode is None:
            coordinator.send_signal(signal.SIGTERM)  # it tells the workers to shut down
        processes = [child.process for child in self._children.values() if child.process is not None]
        try:
            async with asyncio.timeout(_EXIT_GRACE_S):
                for process in processes:
                    await process.wait()
        except TimeoutError:
            self._observer.notice("some processes did not end in time and are killed")
        finally:  # also when somebody cannot wait any longer
            for process in processes:
                if process.returncode is None:
                    process.kill()
            self._link.close()
        for process in processes:
            await process.wait()

    def pids(self) -> dict[str, int]:
        """Process ids by name, of the processes that run now."""
        return {
            name: child.process.pid
            for name, child in self._children.items()
            if child.process is not None and child.process.returncode is None
        }

    # --- processes ---------------------------------------------------------------------------------------------------

    async def _spawn(self, child: _Child) -> None:
        child.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            child.module,
            str(child.config_path),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        task = asyncio.get_running_loop().create_task(self._watch(child, child.process), name=f"watch {child.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch(self, child: _Child, process: asyncio.subprocess.Process) -> None:
        """Pass on what a process prints; when it ends, say so and start it again, or give the cell up."""
        if process.stdout is None:
            raise AssertionError("the child was started with a pipe")
        async for raw in process.stdout:
            line = raw.decode(errors="replace").rstrip()
            child.tail.append(line)
            self._observer.log_line(child.name, line)
        code = await process.wait()
        if self._stopping:
            return
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        if child.name == COORDINATOR:
            self._give_up(f"the coordinator ended ({how})", child)
        elif not self._ready.done():
            self._give_up(f"{child.name} ended before it was ready ({how})", child)
        else:
            self._tell(WorkerExited(worker_id=child.name))
            await self._restart(child, how)

    async def _restart(self, child: _Child, how: str) -> None:
        delay_s = min(_RESTART_DELAY_S * 2**child.restarts, _MAX_RESTART_DELAY_S)
        child.restarts += 1
        self._observer.notice(f"{child.name} ended ({how}); restarting it in {delay_s:g} s")
        await self._clock.sleep(delay_s)
        child.tail.clear()
        await self._spawn(child)

    def _give_up(self, why: str, child: _Child) -> None:
        """Whoever waits for the cell hears of it."""
        tail = "\n".join(f"  {line}" for line in child.tail)
        for waited_for in (self._ready, self._drained, self._failed):
            if not waited_for.done():
                waited_for.set_exception(CellFailed(f"{why}\n{tail}" if tail else why))

    # --- the coordinator ---------------------------------------------------------------------------------------------

    def _tell(self, message: LauncherHello | WorkerExited | Drain) -> None:
        self._link.send(self._codec.encode(message))

    def _received(self, data: bytes) -> None:
        message: ToLauncher = self._codec.decode(data)
        match message:
            case WorkerProgress():
                self._observer.progress(message)
            case ClusterReady():
                self._is_ready(message)
            case WorkerRejected(worker_id=worker_id, reason=reason):
                child = self._children.get(worker_id, self._children[COORDINATOR])
                self._give_up(f"{worker_id} was refused: {reason}", child)
            case WorkerExpired(worker_id=worker_id):
                self._kill(worker_id)
            case DrainProgress(in_flight=in_flight):
                self._observer.draining(in_flight)
            case Drained():
                if not self._drained.done():
                    self._drained.set_result(None)

    def _is_ready(self, message: ClusterReady) -> None:
        if self._ready.done():
            self._observer.notice("every worker serves again")
            for child in self._children.values():
                child.restarts = 0
        else:
            self._ready.set_result(message)

    def _kill(self, worker_id: str) -> None:
        """A worker that the coordinator has given up must not come back as a zombie."""
        child = self._children.get(worker_id)
        if child is not None and child.process is not None and child.process.returncode is None:
            self._observer.notice(f"{worker_id} does not answer any more and is killed")
            child.process.kill()


def _observed_future() -> "asyncio.Future[Any]":
    """A future whose exception nobody has to fetch."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future


def _prepare(options: CellOptions, cell: Path, placement: Placement) -> dict[str, _Child]:
    """Write the configuration file of every process."""
    config.write(cell / f"{COORDINATOR}.json", coordinator_config(options, cell, os.getpid()))
    children = {COORDINATOR: _Child(COORDINATOR, "coordinator", cell / f"{COORDINATOR}.json")}
    for name, worker in worker_configs(options, cell, os.getpid(), placement).items():
        config.write(cell / f"{name}.json", worker)
        module = "prefill_worker" if name.startswith("prefill") else "decode_worker"
        children[name] = _Child(name, module, cell / f"{name}.json")
    return children
