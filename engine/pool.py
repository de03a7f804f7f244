"""Where do keys and values live?

One allocation, page-major (`engine.layout`), made once per worker and as old as the process. Everything else here is a
view of it: the rows and planes that attention writes and gathers, the regions that the transport moves, the words that
the digest reads. Used on the engine thread; `regions` is pure arithmetic and safe anywhere.

In the flat order of memory a *row* is one token's keys (or values) in one layer, [kv_heads * head_dim], and a *plane*
is one page's keys (or values) in one layer, [page_tokens * kv_heads * head_dim]. Page p has the planes
`p * 2 * layers + 2 * layer + (0 for k, 1 for v)`. A layer's views start at its own first plane, so that one index
tensor made for layer 0 serves every layer.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine import room
from engine.digest import digest
from engine.layout import KvLayout
from engine.pages import runs
from runtime.buffers import MemoryKind, Region

_MEMCPY_BYTES = {"cpu": 16 << 20, "cuda": 128 << 20}  # a GPU would have the smaller one in its L2 cache
_MEMCPY_TRIES = 3
_WORD_BYTES = 8


class UnusableMemory(Exception):
    """Memory that the transport could not move, or only slowly."""


@dataclass(frozen=True, slots=True)
class LayerCache:
    """One layer's share of the pool.

    Attributes:
        key_rows, value_rows: [rows, kv_heads * head_dim], indexed by slot: where one token is written.
        key_planes, value_planes: [planes, page_tokens * kv_heads * head_dim], indexed by plane: where pages are read.
        key_pages, value_pages: [pages, page_tokens, kv_heads, head_dim], indexed by page: both, for kernels that know
            strides.
    """

    key_rows: Tensor
    value_rows: Tensor
    key_planes: Tensor
    value_planes: Tensor
    key_pages: Tensor
    value_pages: Tensor


class KvPool:
    """`total_pages` pages on `device`, zeroed once."""

    def __init__(self, layout: KvLayout, total_pages: int, device: torch.device) -> None:
        """
        Raises:
            UnusableMemory: CUDA memory that UCX could not share, or rows that are not whole 64-bit words.
            engine.room.NoRoom: the GPU has no room for it.
        """
        if device.type == "cuda":
            refuse_expandable_segments(os.environ)
            room.check_pool(total_pages * layout.page_bytes, device)
        if layout.kv_heads * layout.head_dim * layout.dtype_bytes % _WORD_BYTES:
            raise UnusableMemory(f"one token's keys of one layer are not whole {_WORD_BYTES}-byte words: {layout}")
        self.layout = layout
        self.total_pages = total_pages
        self._device = device
        dtype = getattr(torch, layout.dtype)
        self._pages = torch.zeros((total_pages, *layout.page_shape), dtype=dtype, device=device)
        # Steps are queued one behind the other, some before the one in front has ended; a digest must not stand there,
        # too, or whoever waits for it would wait for all of them.
        stream: Any = torch.cuda.Stream  # not annotated
        self._beside = stream(device, priority=-1) if device.type == "cuda" else None
        self.synchronize()  # other streams do not wait for the zeros

    def layers(self) -> tuple[LayerCache, ...]:
        """Each layer's views; taken once, at the start."""
        row_size = self.layout.kv_heads * self.layout.head_dim
        rows = self._pages.view(-1, row_size)
        planes = self._pages.view(-1, self.layout.page_tokens * row_size)
        tokens = self.layout.page_tokens
        return tuple(
            LayerCache(
                rows[2 * i * tokens :],
                rows[(2 * i + 1) * tokens :],
                planes[2 * i :],
                planes[2 * i + 1 :],
                self._pages[:, i, 0],
                self._pages[:, i, 1],
            )
            for i in range(self.layout.layers)
        )

    def clear(self, pages: Tensor) -> None:
        """Zero whole pages, given as int64 [n].

        The engine clears a page when it writes its first token. So no byte of an earlier request is ever attended to,
        digested or sent, and whatever was in a masked position, it is not a NaN that would survive the mask.
        """
        self._pages.index_fill_(0, pages, 0)

    def digest(self, pages: Sequence[int]) -> bytes:
        """See `engine.port.EnginePort`."""
        rows = 2 * self.layout.layers * self.layout.page_tokens
        words = self._pages.view(self.total_pages, rows, -1).view(torch.int64)
        with torch.cuda.stream(self._beside):  # None: the usual one
            return digest(words, pages)

    def regions(self, pages: Sequence[int]) -> tuple[Region, ...]:
        """The memory of `pages` in this order, contiguous neighbours merged."""
        base, page_bytes = self._pages.data_ptr(), self.layout.page_bytes
        kind = MemoryKind.CUDA if self._device.type == "cuda" else MemoryKind.HOST
        return tuple(
            Region(base + run.start * page_bytes, run.length * page_bytes, kind, self._device.index or 0)
            for run in runs(pages)
        )

    def memcpy_gigabytes_per_s(self) -> float:
        """The best of a few copies in fresh memory of the pool's kind, measured now."""
        source = torch.ones(_MEMCPY_BYTES[self._device.type], dtype=torch.uint8, device=self._device)
        target = torch.zeros_like(source)
        best_s = min(self._timed_copy_s(target, source) for _ in range(_MEMCPY_TRIES))
        return source.nbytes / best_s / 1e9

    def _timed_copy_s(self, target: Tensor, source: Tensor) -> float:
        if self._device.type == "cuda":  # by the device's clock: the host takes longer to launch it and to wake up
            event: Any = torch.cuda.Event  # not annotated
            began, ended = event(enable_timing=True), event(enable_timing=True)
            began.record()
            target.copy_(source)
            ended.record()
            ended.synchronize()
            return float(began.elapsed_time(ended)) / 1e3
        start = time.perf_counter()
        target.copy_(source)
        return time.perf_counter() - start

    def mark(self) -> torch.cuda.Event | None:
        """Reached once everything that this thread has queued so far is done: what it has written to the pool is in its
        memory, where the transport may read it. None on a CPU, where that is so already.

        Whoever waits for it sleeps: its core is the loop thread's, too.
        """
        if self._device.type != "cuda":
            return None
        event: Any = torch.cuda.Event  # not annotated
        reached: torch.cuda.Event = event(blocking=True)
        reached.record(torch.cuda.current_stream(self._device))
        return reached

    def synchronize(self) -> None:
        """Wait for what this thread has queued so far."""
        if (reached := self.mark()) is not None:
            reached.synchronize()


def refuse_expandable_segments(environ: Mapping[str, str]) -> None:
    """
    Raises:
        UnusableMemory: torch would map CUDA memory in segments that have no cuda_ipc handle: UCX would silently stage
            every transfer through the host.
    """
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        settings = [part.strip().lower() for part in environ.get(name, "").split(",")]
        if "expandable_segments:true" in settings:
            raise UnusableMemory(f"unset expandable_segments:True in {name}: its memory cannot be shared over cuda_ipc")
