"""How do the servers of an evaluation come up, and how do they go down?

A cell that was asked for by its shape is started here and ended here; a running one and a URL are only connected to.
"""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from coordinator.config import CoordinatorConfig
from launch.cell import running_cell
from launch.cell_flags import CellFlags
from launch.client import StreamingClient
from launch.evaluation import vocabulary
from launch.evaluation.cell_target import CellTarget
from launch.evaluation.http_target import HttpTarget, Served
from launch.evaluation.study import System
from launch.evaluation.systems import CellByName, OwnCell, SystemSpec, Url
from launch.evaluation.targets import Target
from launch.rundir import client_endpoint, is_running
from launch.supervisor import Observer
from runtime import config
from runtime.clock import Clock


class SystemMissing(Exception):
    """A server that was named is not there."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    target: Target
    system: System
    model: str
    ids: tuple[int, int]  # for random prompts: the first one and the one after the last
    context_tokens: int | None  # None: it does not say
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Means:
    """With what systems are opened."""

    cell: CellFlags
    model_dir: Path | None  # of own cells; None: the mock engine
    base: Path  # where cells run
    clock: Clock
    observer: Observer
    api_key: str | None = None
    url_model: str | None = None
    tokenizer: Path | None = None
    text_only: bool = False


class Systems:
    """All systems of a study; use it as `async with`."""

    def __init__(self, specs: Sequence[SystemSpec], means: Means, *, one_at_a_time: bool) -> None:
        """
        Args:
            one_at_a_time: only one is up, and it is a fresh one whenever the system changes.

        Raises:
            ValueError: two of them have one name.
        """
        self._specs = {spec.name: spec for spec in specs}
        if len(self._specs) < len(specs):
            raise ValueError(f"{specs[0].name} cannot be compared with itself under one name")
        self._means = means
        self._one_at_a_time = one_at_a_time
        self._open: dict[str, Opened] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """
        Raises:
            launch.supervisor.CellFailed, launch.client.ServerUnreachable,
            launch.evaluation.http_target.ServerUnusable, SystemMissing: one of them is not to be had.
        """
        try:
            for name in list(self._specs)[: 1 if self._one_at_a_time else None]:
                await self.use(name)
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._specs)

    async def use(self, name: str) -> Opened:
        """The system, opened now if it is not up."""
        if name not in self._open:
            if self._one_at_a_time:
                await self._stack.aclose()
                self._open.clear()
            self._open[name] = await self._stack.enter_async_context(_opened(self._specs[name], self._means))
        return self._open[name]


@asynccontextmanager
async def _opened(spec: SystemSpec, means: Means) -> AsyncIterator[Opened]:
    match spec:
        case OwnCell():
            async with _own(spec, means) as opened:
                yield opened
        case CellByName():
            async with _by_name(spec, means) as opened:
                yield opened
        case Url():
            async with HttpTarget(spec.base, means.clock, means.api_key) as target:
                yield await _url(spec, target, means)


@asynccontextmanager
async def _own(spec: OwnCell, means: Means) -> AsyncIterator[Opened]:
    options = means.cell.options(means.model_dir, spec.workers)
    name = f"eval-{os.getpid()}-{spec.name.replace(' ', '-')}"
    async with (
        running_cell(options, means.base, name, means.observer) as cell,
        StreamingClient(cell.endpoint, clock=means.clock) as client,
    ):
        ready = cell.ready
        pools = "+".join(str(worker.total_pages * worker.page_tokens) for worker in ready.workers)
        shares = [*cell.placement.prefill, *cell.placement.decode]
        cores = " | ".join(",".join(map(str, share)) for share in shares)
        description = f"{ready.model}, dtype {options.dtype}, context {ready.max_model_len}, KV pools {pools} tokens"
        yield Opened(
            target=CellTarget(client, means.clock),
            system=System(name=spec.name, description=f"{description}, cores {cores}", workers=spec.workers.count),
            model=ready.model,
            ids=vocabulary.BYTES if means.model_dir is None else vocabulary.of_model(means.model_dir),
            context_tokens=ready.max_model_len,
        )


@asynccontextmanager
async def _by_name(spec: CellByName, means: Means) -> AsyncIterator[Opened]:
    if not is_running(means.base, spec.cell):
        raise SystemMissing(f"no cell named {spec.cell!r} is running; start one with `kvrelay up`")
    directory = means.base / spec.cell
    async with StreamingClient(client_endpoint(directory), clock=means.clock) as client:
        if client.server is None:
            raise AssertionError("a connected client was welcomed")
        server = client.server
        tokenizer = config.read(directory / "coordinator.json", CoordinatorConfig).tokenizer_dir
        shape = f"{server.prefill_workers}P{server.decode_workers}D"
        if not server.prefill_workers:
            shape = f"aggregated {server.decode_workers}"
        yield Opened(
            target=CellTarget(client, means.clock),
            system=System(
                name=spec.name,
                description=f"{shape}, {server.model}, context {server.max_model_len}",
                workers=server.prefill_workers + server.decode_workers,
            ),
            model=server.model,
            ids=vocabulary.BYTES if tokenizer is None else vocabulary.of_model(Path(tokenizer)),
            context_tokens=server.max_model_len,
        )


async def _url(spec: Url, target: HttpTarget, means: Means) -> Opened:
    served = await target.models()
    named = [model for model in served if means.url_model in (None, model.id)]
    if not named:
        known = ", ".join(model.id for model in served)
        raise SystemMissing(f"{spec.base} does not serve {means.url_model}; it serves {known}")
    model = named[0]
    ids, notes = _url_ids(model, means)
    await target.connect(model.id, range(ids[0], min(ids[0] + 8, ids[1])), text_only=means.text_only)
    context = "" if model.max_model_len is None else f", context {model.max_model_len}"
    return Opened(
        target=target,
        system=System(name=spec.name, description=f"{model.id}{context}, over HTTP"),
        model=model.id,
        ids=ids,
        context_tokens=model.max_model_len,
        notes=notes,
    )


def _url_ids(model: Served, means: Means) -> tuple[tuple[int, int], tuple[str, ...]]:
    directory = means.tokenizer
    if directory is None and model.root is not None and (Path(model.root) / "tokenizer.json").is_file():
        directory = Path(model.root)
    if directory is not None:
        return vocabulary.of_model(directory), ()
    if model.root == "mock":
        return vocabulary.BYTES, ()
    low, high = vocabulary.UNKNOWN
    return vocabulary.UNKNOWN, (
        f"prompts are made of the ids {low} to {high - 1}; --tokenizer would tell its whole vocabulary",
    )
