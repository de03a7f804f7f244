"""How does a decode step reach the device without a launch per kernel?

A step of a given number of rows is captured once, as a CUDA graph, and replayed. Steps are padded to the next of a few
sizes (`buckets`); rows of padding read and write nothing. A graph reads its step from memory that stays where it is:
the packed tables of a `Stage`, and one page table as wide as the longest sequence, of which a step fills what it needs.
What cannot be replayed runs eagerly: `DecodeGraphs.bucket` tells.

Tokens that only the device knows yet are put into `input_ids` between `load` and `replay`: a graph reads them there
like all others.
"""

import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from engine.cuda.tables import DeviceTables, Outline, Stage, StepPlan, columns_for, decode_room, padded, tabulate
from engine.layout import KvLayout

Forward = Callable[[Outline, DeviceTables], Tensor]
"""A step: [samples, vocab]."""

Capture = Callable[[Callable[[], None]], Callable[[], None]]
"""Records what a function does on the device; the result does it again."""


class CaptureFailed(Exception):
    """This model's decode step cannot be replayed."""


def buckets(max_batch: int) -> tuple[int, ...]:
    """The sizes that steps of up to `max_batch` rows are padded to: above 16 rows at most a third is padding."""
    sizes = [1, 2, 4, 8, *(size for k in range(4, max_batch.bit_length()) for size in (1 << k, 3 << (k - 1)))]
    return (*(size for size in sizes if size < max_batch), max_batch)


def cuda_capture() -> Capture:
    """Captures that share one memory pool: whatever a step leaves behind, the next one may overwrite.

    A capture that breaks off leaves torch's allocator in disarray, so what waits for the device is found out before.
    """
    pool = torch.cuda.graph_pool_handle()

    def capture(run: Callable[[], None]) -> Callable[[], None]:
        with _waiting_forbidden():
            run()
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream()
        try:
            # Other threads of a worker may use the device meanwhile: only this thread's calls are recorded or refused.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                run()
        finally:
            torch.cuda.set_stream(stream)  # which a capture that breaks off does not give back
        return graph.replay

    return capture


@contextmanager
def _waiting_forbidden() -> Iterator[None]:
    """An operation that waits for the device is a RuntimeError."""
    cuda: Any = torch.cuda  # these functions are not annotated
    before = cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch tells that it does not find all of them
        cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            cuda.set_sync_debug_mode(before)


class DecodeGraphs:
    """One graph per bucket.

    Keeps no reference to the forward that it was captured from, which has one to this: what a trial has captured ends
    with it. Left to the collector of cycles, its memory would stay, and it could end in the middle of a capture.
    """

    def __init__(self, sizes: Sequence[int], layout: KvLayout, max_model_len: int, device: torch.device) -> None:
        """`sizes` are the buckets, ascending, at least one."""
        self._sizes = sizes
        self._layout = layout
        self._pages = torch.zeros((sizes[-1], columns_for(max_model_len, layout)), dtype=torch.int32, device=device)
        self._all = torch.arange(sizes[-1], device=device)
        self._stage = Stage(device, decode_room(*self._pages.shape))
        self._replays: dict[int, Callable[[], None]] = {}
        self._logits = torch.empty(0)  # [largest bucket, vocab] from the first capture on

    def capture(self, run: Forward, capture: Capture) -> None:
        """Capture all buckets, the largest first: the others fit into its memory.

        Args:
            run: the forward, a function of its tables' memory.

        Raises:
            CaptureFailed: the forward waits for the device, or there is no memory.
        """
        try:
            for size in reversed(self._sizes):
                self._replays[size] = self._captured(size, run, capture)
        except RuntimeError as error:
            raise CaptureFailed(f"a step of {size} rows: {error}") from error

    def bucket(self, plan: StepPlan) -> int | None:
        """The size that replays this step; None: it has chunks, too many rows, or a page table that is too wide."""
        rows = plan.outline.decodes
        if plan.outline.chunks or rows > self._sizes[-1] or plan.tables.page_table.shape[1] > self._pages.shape[1]:
            return None
        return self._sizes[bisect_left(self._sizes, rows)]

    def load(self, plan: StepPlan, bucket: int) -> DeviceTables:
        """Put a step where the graph of `bucket` reads it."""
        tables = self._stage.upload(padded(plan.tables, bucket))
        rows, columns = tables.page_table.shape
        self._pages[:rows, :columns] = tables.page_table
        return tables

    def replay(self, bucket: int) -> Tensor:
        """Run what is loaded.

        Returns:
            [bucket, vocab], of every row and of the padding; good until the next replay.
        """
        self._replays[bucket]()
        return self._logits[:bucket]

    def _captured(self, size: int, forward: Forward, capture: Capture) -> Callable[[], None]:
        tables = replace(
            self.load(tabulate((), self._layout), size), page_table=self._pages[:size], sampled=self._all[:size]
        )
        outline = Outline(starts=(0,), opening=0, decodes=size)
        warm = forward(outline, tables)  # compiles kernels and makes workspaces, which no capture may
        if not self._logits.numel():
            self._logits = torch.empty_like(warm)
        logits = self._logits[:size]

        def run() -> None:
            logits.copy_(forward(outline, tables))

        return capture(run)
