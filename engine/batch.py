"""What does one forward compute, in the form that the kernels want?

`BatchBuilder.build` turns the rows of a step into a `ForwardBatch`: flattened tokens, where their keys go, and which
pages each row attends to. All of it is made once per step and shared by all layers; a layer only picks the groups of
its own window. For `engine.forward.GatheredForward`, on the engine thread; kernels that read pages where they lie want
other tables (`engine.cuda.tables`).

Rows are reordered inside the step: prompt chunks first, then the rows of one token (decode) by length, so that every
group is a contiguous range of tokens. Decode rows attend in groups, over gathered copies of their pages, padded to the
longest row of the group. Two limits shape the groups: rows of a group differ by a quarter of their pages at most, and
on a CPU the gathered keys and values of a group fit the cache of a core (measured: gathering 32 rows of 1024 tokens at
once takes 1.7 times as long as four at a time).
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.layout import KvLayout
from engine.port import Row

Window = int | None
"""How many tokens back a layer attends, itself included; None: to all."""

_CPU_GATHER_BYTES = 4 << 20
"""Keys and values of one layer that a decode group of several rows may gather on a CPU."""

_SPARE_PAGES = 4  # rows of a group may always differ by this many pages; a group of its own costs about as much


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that attend in one call: one prompt chunk, or decode rows of similar length.

    Attributes:
        start, stop: which tokens of the step ask.
        rows: how many sequences; a decode group has one token of each.
        planes: int64 [rows * pages per row], the key planes of layer 0 to gather. None: the keys of this very step
            are all there is, the chunk starts its prompt.
        keys: which of a row's gathered tokens count; the others are outside its window or behind its end.
        mask: additive, [rows, 1, queries, keys], or None.
        is_causal: attend as a triangle, without a mask.
    """

    start: int
    stop: int
    rows: int
    planes: Tensor | None
    keys: slice
    mask: Tensor | None
    is_causal: bool

    @property
    def is_decode(self) -> bool:
        return self.stop - self.start == self.rows


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """One step, on the device.

    Attributes:
        input_ids, position_ids: int64 [1, tokens].
        slots: int64 [tokens], the key row of layer 0 where each token's keys go.
        fresh_pages: int64 [n], the pages whose first token this step writes.
        groups: for every window of the model, the groups that cover all tokens, in order.
        gather_planes: the most planes that a group gathers.
        sampled: int64 [samples], the last tokens of the rows that sample, in the caller's order.
        followers: int64 [n], the tokens of the rows that follow a sample of the step before.
        followed: int64 [n], the places of those samples.
    """

    input_ids: Tensor
    position_ids: Tensor
    slots: Tensor
    fresh_pages: Tensor
    groups: Mapping[Window, tuple[Group, ...]]
    gather_planes: int
    sampled: Tensor
    followers: Tensor
    followed: Tensor


@dataclass(frozen=True, slots=True)
class _Span:
    """The pages of one row that hold what its tokens attend to in layers of one window."""

    pages: tuple[int, ...]
    first_key: int  # position in the sequence of the first token that any query sees
    base: int  # position of the first token of pages[0]
    end: int

    @property
    def keys(self) -> slice:
        return slice(self.first_key - self.base, self.end - self.base)


@dataclass(frozen=True, slots=True)
class BatchBuilder:
    """Everything about a model and its pool that shapes a step; `windows` are those that some layer has."""

    layout: KvLayout
    windows: frozenset[Window]
    device: torch.device

    def build(self, rows: Sequence[Row]) -> ForwardBatch:
        """
        Raises:
            ValueError: a row does not fit its pages, or follows with several tokens: a mistake of the caller.
        """
        refuse_misfits(rows, self.layout)
        chunks = [i for i, row in enumerate(rows) if len(row.token_ids) > 1]
        decodes = sorted((i for i, row in enumerate(rows) if len(row.token_ids) == 1), key=lambda i: rows[i].start)
        order = chunks + decodes
        step = [rows[i] for i in order]
        ends = dict(zip(order, accumulate(len(row.token_ids) for row in step), strict=True))
        groups = {window: tuple(self._groups(step, len(chunks), window)) for window in self.windows}
        planes = [group.planes for of_window in groups.values() for group in of_window]
        return ForwardBatch(
            input_ids=self._tensor([np.asarray(row.token_ids) for row in step])[None],
            position_ids=self._tensor([_positions(row) for row in step])[None],
            slots=self._tensor([self._slots(row) for row in step]),
            fresh_pages=self._tensor([np.array(fresh_pages(step, self.layout))]),
            groups=groups,
            gather_planes=max((p.shape[0] for p in planes if p is not None), default=0),
            sampled=self._tensor([np.array([ends[i] - 1 for i, row in enumerate(rows) if row.sample])]),
            followers=self._tensor([np.array([ends[i] - 1 for i, row in enumerate(rows) if row.follows is not None])]),
            followed=self._tensor([np.array([row.follows for row in rows if row.follows is not None])]),
        )

    def _slots(self, row: Row) -> NDArray[np.int64]:
        page, offset = np.divmod(_positions(row), self.layout.page_tokens)
        return np.asarray(row.pages)[page] * (self._planes_per_page * self.layout.page_tokens) + offset

    def _groups(self, step: Sequence[Row], chunks: int, window: Window) -> Iterator[Group]:
        start = 0
        for row in step[:chunks]:
            stop = start + len(row.token_ids)
            yield self._chunk(row, start, stop, window)
            start = stop
        for spans in self._similar([self._span(row, window) for row in step[chunks:]]):
            yield self._decode(spans, start)
            start += len(spans)

    def _chunk(self, row: Row, start: int, stop: int, window: Window) -> Group:
        span = self._span(row, window)
        is_first = row.start == 0
        is_causal = is_first and (window is None or row.end <= window)
        mask = None if is_causal else self._chunk_mask(row, span, window)
        planes = None if is_first else self._planes(np.asarray(span.pages))
        return Group(start, stop, rows=1, planes=planes, keys=span.keys, mask=mask, is_causal=is_causal)

    def _decode(self, spans: Sequence[_Span], start: int) -> Group:
        """One token of each row; a row's missing pages are its first one again, masked."""
        pages = max(len(span.pages) for span in spans)
        table = np.array([[*span.pages, *span.pages[:1] * (pages - len(span.pages))] for span in spans])
        keys = slice(0, pages * self.layout.page_tokens) if len(spans) > 1 else spans[0].keys
        mask = self._length_mask(spans, keys.stop) if len(spans) > 1 else None
        planes = self._planes(table.reshape(-1))
        return Group(start, start + len(spans), rows=len(spans), planes=planes, keys=keys, mask=mask, is_causal=False)

    def _span(self, row: Row, window: Window) -> _Span:
        end, size = row.end, self.layout.page_tokens
        first_key = 0 if window is None else max(0, row.start + 1 - window)
        first_page = first_key // size
        pages = tuple(row.pages[first_page : self.layout.pages_for(end)])
        return _Span(pages, first_key, first_page * size, end)

    def _similar(self, spans: Sequence[_Span]) -> Iterator[list[_Span]]:
        """Cut decode rows, shortest first, into groups within the two limits."""
        group: list[_Span] = []
        for span in spans:
            pages = len(span.pages)
            if group and (
                pages - len(group[0].pages) > max(_SPARE_PAGES, pages // 4)
                or (len(group) + 1) * pages > self._gather_pages
            ):
                yield group
                group = []
            group.append(span)
        if group:
            yield group

    def _chunk_mask(self, row: Row, span: _Span, window: Window) -> Tensor:
        queries = torch.arange(row.start, row.end, device=self.device)[:, None]
        keys = torch.arange(span.first_key, span.end, device=self.device)
        visible = keys <= queries
        if window is not None:
            visible &= keys > queries - window
        return self._additive(visible)[None, None]

    def _length_mask(self, spans: Sequence[_Span], length: int) -> Tensor:
        first, end = self._tensor([np.array([(span.keys.start, span.keys.stop) for span in spans])]).unbind(dim=1)
        keys = torch.arange(length, device=self.device)
        return self._additive((keys >= first[:, None]) & (keys < end[:, None]))[:, None, None]

    def _additive(self, visible: Tensor) -> Tensor:
        dtype = getattr(torch, self.layout.dtype)
        return torch.zeros(visible.shape, dtype=dtype, device=self.device).masked_fill_(~visible, -torch.inf)

    def _planes(self, pages: NDArray[np.int64]) -> Tensor:
        return self._tensor([pages * self._planes_per_page])

    @property
    def _planes_per_page(self) -> int:
        return 2 * self.layout.layers

    @property
    def _gather_pages(self) -> int:
        """The most pages that a decode group of several rows gathers."""
        if self.device.type != "cpu":
            return sys.maxsize
        return _CPU_GATHER_BYTES * self.layout.layers // self.layout.page_bytes

    def _tensor(self, parts: Sequence[NDArray[np.int64]]) -> Tensor:
        joined = np.concatenate(parts) if parts else np.empty(0)
        return torch.from_numpy(joined.astype(np.int64, copy=False)).to(self.device)


def refuse_misfits(rows: Sequence[Row], layout: KvLayout) -> None:
    """
    Raises:
        ValueError: a row has no tokens, its pages have no room for them, or it follows and has several: a mistake of
            the caller.
    """
    for row in rows:
        if not row.token_ids or row.start < 0 or len(row.pages) < layout.pages_for(row.end):
            raise ValueError(f"{len(row.token_ids)} tokens from {row.start} on do not fit {len(row.pages)} pages")
        if row.follows is not None and len(row.token_ids) != 1:
            raise ValueError(f"a row follows one sample, not {len(row.token_ids)}")


def fresh_pages(rows: Sequence[Row], layout: KvLayout) -> list[int]:
    """The pages whose first token these rows write."""
    return [page for row in rows for page in row.pages[layout.pages_for(row.start) : layout.pages_for(row.end)]]


def _positions(row: Row) -> NDArray[np.int64]:
    return np.arange(row.start, row.end)
