"""What do the kernels have to know of a step, and how does it get to the device?

`tabulate` is arithmetic: rows become numpy arrays. A `Stage` packs them into one pinned buffer and brings them to the
device in one copy that the host does not wait for.

Rows are reordered inside the step: prompt chunks first, those that begin their prompt before the others, then the rows
of one token (decode), each kind in the caller's order. So each kind is one range of tokens and one of page tables.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate, chain
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.batch import fresh_pages, refuse_misfits
from engine.layout import KvLayout
from engine.port import Row

_COLUMNS = 16
"""Page tables are as wide as a multiple of this, so that kernels are compiled for one kind of stride only."""

_ALIGNMENT = 128  # bytes, of each table; kernels are compiled for aligned pointers, too

A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class Tables(Generic[A]):
    """What a step is to the kernels: arrays on the host, tensors on the device.

    The first four are what a captured decode step reads besides page tables. They come first, so that their place in a
    packed buffer depends on the number of rows alone.

    Attributes:
        input_ids, positions: int64 [tokens].
        slots: int64 [tokens], page * page_tokens + offset, where a token's keys go; -1: nowhere.
        lengths: int32 [decode rows], how many keys a row sees in layers without a window; 0: padding.
        starts: int32 [chunks + 1], the first token of each chunk, and of the decode rows.
        later_starts: int32 [later chunks + 1], the end of `starts`: chunks that do not begin their prompt.
        first_positions: int32 [chunks], of each chunk's first token.
        later_positions: int32 [later chunks], the end of `first_positions`.
        sampled: int64 [samples], the last tokens of the rows that sample, in the caller's order.
        followers: int64 [n], the tokens of the rows that follow a sample of the step before.
        followed: int64 [n], the places of those samples.
        fresh_pages: int64 [n], the pages whose first token the step writes.
        page_table: int32 [rows, columns], pages from position 0 on; what is beyond a row's own is no page of it.
    """

    input_ids: A
    positions: A
    slots: A
    lengths: A
    starts: A
    later_starts: A
    first_positions: A
    later_positions: A
    sampled: A
    followers: A
    followed: A
    fresh_pages: A
    page_table: A


HostTables = Tables[NDArray[Any]]
DeviceTables = Tables[Tensor]


@dataclass(frozen=True, slots=True)
class Outline:
    """The shape of a step, which the host knows without asking the device.

    Attributes:
        starts: as in `Tables`; the last one is how many tokens the chunks have.
        opening: how many of the chunks begin their prompt; they are the first ones.
        decodes: how many rows have one token.
    """

    starts: tuple[int, ...]
    opening: int
    decodes: int

    @property
    def chunks(self) -> int:
        return len(self.starts) - 1

    @property
    def chunk_tokens(self) -> int:
        return self.starts[-1]

    def longest(self, first: int, stop: int) -> int:
        """The most tokens that one of the chunks `first` to `stop` has; 0 where there is none."""
        return max((self.starts[i + 1] - self.starts[i] for i in range(first, stop)), default=0)


@dataclass(frozen=True, slots=True)
class StepPlan:
    outline: Outline
    tables: HostTables


def columns_for(tokens: int, layout: KvLayout) -> int:
    """How wide a page table of sequences of `tokens` tokens is."""
    return -(-layout.pages_for(tokens) // _COLUMNS) * _COLUMNS


def tabulate(rows: Sequence[Row], layout: KvLayout) -> StepPlan:
    """
    Raises:
        ValueError: a row does not fit its pages, or follows with several tokens: a mistake of the caller.
    """
    refuse_misfits(rows, layout)
    order = sorted(range(len(rows)), key=lambda i: _kind(rows[i]))  # stable
    step = [rows[i] for i in order]
    kinds = [_kind(row) for row in step]
    opening, chunks = kinds.count(_OPENING), len(kinds) - kinds.count(_DECODE)
    counts = [len(row.token_ids) for row in step]
    ends = list(accumulate(counts))
    last_tokens = dict(zip(order, ends, strict=True))
    table = _page_table(step, layout)
    owners = np.repeat(np.arange(len(step)), np.array(counts, dtype=np.int64))  # the row of each token
    first_tokens = np.array([end - count for end, count in zip(ends, counts, strict=True)], dtype=np.int64)
    first_positions = np.array([row.start for row in step], dtype=np.int64)
    positions = np.arange(len(owners)) + (first_positions - first_tokens)[owners]
    pages, offsets = np.divmod(positions, layout.page_tokens)
    starts = (0, *ends[:chunks])
    tables: HostTables = Tables(
        input_ids=np.fromiter(chain.from_iterable(row.token_ids for row in step), np.int64, len(owners)),
        positions=positions,
        slots=table[owners, pages].astype(np.int64) * layout.page_tokens + offsets,
        lengths=np.array([row.end for row in step[chunks:]], dtype=np.int32),
        starts=np.array(starts, dtype=np.int32),
        later_starts=np.array(starts[opening:], dtype=np.int32),
        first_positions=first_positions[:chunks].astype(np.int32),
        later_positions=first_positions[opening:chunks].astype(np.int32),
        sampled=np.array([last_tokens[i] - 1 for i, row in enumerate(rows) if row.sample], dtype=np.int64),
        followers=np.array([last_tokens[i] - 1 for i, row in enumerate(rows) if row.follows is not None], np.int64),
        followed=np.array([row.follows for row in rows if row.follows is not None], dtype=np.int64),
        fresh_pages=np.array(fresh_pages(step, layout), dtype=np.int64),
        page_table=table,
    )
    return StepPlan(Outline(starts, opening, len(step) - chunks), tables)


def padded(tables: HostTables, rows: int) -> HostTables:
    """The tables of a step of decode rows alone with rows of padding behind them, `rows` in all. They read nothing and
    write nothing, so they need no pages: the page table stays as it is."""
    extra = rows - len(tables.lengths)
    return replace(
        tables,
        input_ids=_extended(tables.input_ids, extra, 0),
        positions=_extended(tables.positions, extra, 0),
        slots=_extended(tables.slots, extra, -1),
        lengths=_extended(tables.lengths, extra, 0),
    )


def packed_bytes(tables: HostTables) -> int:
    """The room that `tables` take on a `Stage`."""
    return sum(_room(array) for array in _arrays(tables))


def decode_room(rows: int, columns: int) -> int:
    """The most room that a step of `rows` decode rows takes; each may sample and begin a page."""
    line = np.empty(rows, dtype=np.int64)
    lines = [line] * (len(fields(Tables)) - 1)
    return packed_bytes(Tables(*lines, *[np.empty((rows, columns), dtype=np.int32)]))


class Stage:
    """A device buffer for one step's tables, and two pinned ones that are filled in turn.

    The next step may be written on the host while the copy of this one has yet to begin; on the device the copy waits
    for the kernels before it, as everything on one stream does.
    """

    def __init__(self, device: torch.device, capacity: int) -> None:
        """`capacity` in bytes."""
        self.capacity = capacity
        is_cuda = device.type == "cuda"
        self._device = torch.empty(capacity, dtype=torch.uint8, device=device)
        self._hosts = [torch.empty(capacity, dtype=torch.uint8, pin_memory=is_cuda) for _ in range(2)]
        event: Any = torch.cuda.Event  # not annotated
        self._copied = [event() if is_cuda else None for _ in range(2)]
        self._turn = 0

    def upload(self, tables: HostTables) -> DeviceTables:
        """
        Returns:
            Views of the device buffer, good until the next upload. Tables of the same sizes get the same memory.
        """
        self._turn = 1 - self._turn
        host, copied = self._hosts[self._turn], self._copied[self._turn]
        if copied is not None:
            copied.synchronize()  # that of the step before the last: long done
        memory = host.numpy()
        views: list[Tensor] = []
        start = 0
        for array in _arrays(tables):
            memory[start : start + array.nbytes].view(array.dtype)[...] = array.reshape(-1)
            dtype = getattr(torch, array.dtype.name)
            views.append(self._device[start : start + array.nbytes].view(dtype).view(array.shape))
            start += _room(array)
        self._device[:start].copy_(host[:start], non_blocking=True)
        if copied is not None:
            copied.record()
        return Tables(*views)


_OPENING, _LATER, _DECODE = range(3)


def _kind(row: Row) -> int:
    if len(row.token_ids) == 1:
        return _DECODE
    return _LATER if row.start else _OPENING


def _page_table(step: Sequence[Row], layout: KvLayout) -> NDArray[np.int32]:
    table = np.zeros((len(step), columns_for(max((row.end for row in step), default=0), layout)), dtype=np.int32)
    for line, row in zip(table, step, strict=True):
        count = layout.pages_for(row.end)
        line[:count] = row.pages[:count]
    return table


def _extended(array: NDArray[Any], extra: int, value: int) -> NDArray[Any]:
    return np.concatenate([array, np.full(extra, value, dtype=array.dtype)])


def _arrays(tables: HostTables) -> Iterator[NDArray[Any]]:
    return (getattr(tables, field.name) for field in fields(tables))


def _room(array: NDArray[Any]) -> int:
    return -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
