"""What does the person who starts a cell see of it?

Progress while it loads, one ready line, warnings at once. With a terminal it is drawn with `rich`; without one every
event is a plain line.
"""

import shlex
import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from launch.cell import RunningCell
from launch.progress import Stage
from launch.supervisor import Observer
from transport.messages.common import Role
from transport.messages.launcher import ClusterReady, WorkerProgress

_MIB = 1 << 20


class CellDisplay:
    """Draws a cell on stderr; stdout is left to answers."""

    def __init__(self, console: Console, *, verbose: bool) -> None:
        self._console = console
        self._verbose = verbose
        self._tasks: dict[str, TaskID] = {}
        self._said: set[str] = set()  # without a terminal each stage is said once
        self._started = time.monotonic()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[name]:<12}"),
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def observer(self) -> Observer:
        return Observer(self._worker_progress, self._log_line, self._notice, self._draining)

    def __enter__(self) -> "CellDisplay":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """No more bars; lines are still printed."""
        self._progress.stop()

    def pull_progress(self, stage: Stage, done: int, total: int | None) -> None:
        """For `launch.models.resolve`, while the default model is fetched and converted."""
        self._draw("model", f"{stage} ({done / _MIB:.0f} MiB)", done / total if total else None)

    def _worker_progress(self, message: WorkerProgress) -> None:
        self._draw(message.worker_id, message.stage, message.fraction)

    def _draw(self, name: str, stage: str, fraction: float | None) -> None:
        if not self._console.is_terminal:
            line = f"{name}: {stage.partition(' (')[0]}"
            if line not in self._said:
                self._said.add(line)
                self._console.print(line, highlight=False)
            return
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(stage, name=name, total=None)
        self._progress.update(
            self._tasks[name], description=stage, total=None if fraction is None else 1.0, completed=fraction or 0.0
        )

    def ready(self, cell: RunningCell) -> None:
        """The one line that says what runs, and where each process runs."""
        self._progress.stop()
        message = cell.ready
        self._console.print(
            f"[bold green]ready[/] in {time.monotonic() - self._started:.1f} s: {message.model}, "
            f"{_shape(message)}, context {message.max_model_len}{_links(message)}"
            f"{f', OpenAI API at {cell.api}/v1' if cell.api else ''}, clients at {cell.endpoint}",
            highlight=False,
            soft_wrap=True,
        )
        for link in message.links:
            if link.staged:
                self._notice(
                    f"KV PAGES GO THROUGH THE HOST {link.prefill} -> {link.decode}: UCX moves GPU memory over "
                    f"{link.transport}, {link.gigabytes_per_s:.2f} GB/s, and not over cuda_ipc or RDMA; see "
                    "docs/operations.md"
                )
            elif link.slow:
                self._notice(
                    f"SLOW KV LINK {link.prefill} -> {link.decode}: {link.transport}, {link.gigabytes_per_s:.2f} GB/s; "
                    f"one memory copy does {link.memcpy_gigabytes_per_s:.1f} GB/s; see docs/operations.md"
                )
        cores = ", ".join(
            f"{role}-{i} on {_cores(share)}"
            for role, shares in (("prefill", cell.placement.prefill), ("decode", cell.placement.decode))
            for i, share in enumerate(shares)
        )
        shared = " (more workers than cores: they share)" if cell.placement.shared else ""
        self._console.print(f"placement: {cores}{shared}", highlight=False, soft_wrap=True)

    def suggest(self, cell: RunningCell, name: str, *, needs_key: bool) -> None:
        """Commands to try, for another terminal."""
        where = "" if name == "default" else f" --name {shlex.quote(name)}"
        self._console.print(f'try: kvrelay generate{where} --stats "What is the capital of France?"', highlight=False)
        if cell.api is not None:
            key = ' -H "Authorization: Bearer $KVRELAY_API_KEY"' if needs_key else ""
            body = '{"messages": [{"role": "user", "content": "What is the capital of France?"}]}'
            self._console.print(
                f"or:  curl {cell.api}/v1/chat/completions -H 'Content-Type: application/json'{key} -d '{body}'",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )

    def _log_line(self, process: str, line: str) -> None:
        """Warnings, errors and whatever is not a log line (a traceback, say) always; the rest when asked for."""
        fields = line.split(maxsplit=2)
        routine = len(fields) > 1 and fields[1] in ("DEBUG", "INFO")
        if self._verbose or not routine:
            prefix = "" if process in line else f"{process}: "
            self._console.print(f"{prefix}{line}", highlight=False, markup=False, soft_wrap=True)

    def _notice(self, text: str) -> None:
        self._console.print(f"[bold yellow]{text}[/]", highlight=False, soft_wrap=True)

    def _draining(self, in_flight: int) -> None:
        line = f"draining: {in_flight} requests in flight; Ctrl-C again stops now"
        if line not in self._said:
            self._said.add(line)
            self._console.print(line, highlight=False)


def _shape(message: ClusterReady) -> str:
    """How many workers of which kind, and what their pools hold."""
    pools: dict[Role, list[int]] = {"prefill": [], "decode": []}
    for worker in message.workers:
        pools[worker.role].append(worker.total_pages * worker.page_tokens)
    prefill, decode = pools["prefill"], pools["decode"]
    if not prefill:
        return f"aggregated {len(decode)}, KV pools {sum(decode)} tokens"
    return f"{len(prefill)}P{len(decode)}D, KV pools {sum(prefill)} + {sum(decode)} tokens"


def _links(message: ClusterReady) -> str:
    """The path of the pages; nothing in a cell where none travel."""
    rates = [link.gigabytes_per_s for link in message.links]
    if not rates:
        return ""
    transports = "+".join(sorted({link.transport for link in message.links}))
    span = f"{min(rates):.1f}" if max(rates) - min(rates) < 0.1 else f"{min(rates):.1f}-{max(rates):.1f}"
    return f", KV over UCX/{transports} at {span} GB/s"


def _cores(cores: Sequence[int]) -> str:
    if len(cores) > 2 and list(cores) == list(range(cores[0], cores[-1] + 1)):
        return f"cores {cores[0]}-{cores[-1]}"
    return ("core " if len(cores) == 1 else "cores ") + ",".join(map(str, cores))
