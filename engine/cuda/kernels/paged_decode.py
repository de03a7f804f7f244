"""How does one new token of each sequence attend to its pages?

Flash-decoding (Dao et al., "Flash-Decoding for long-context inference", 2023): the keys of a sequence are split over
several programs, so that a small batch also keeps every multiprocessor reading, and a second kernel joins what they
found. A program has all query heads of one kv_head, so no key is read twice.

The number of splits is fixed by the workspace, because a CUDA graph has a fixed grid. It is an upper limit: each split
has whole blocks of keys, programs without keys end at once, and a sequence that needs one split only is not joined.

Has run: in Triton's interpreter on a CPU, in float32 and float16 (tests/unit/engine/cuda). Compiles for Hopper. Not yet
run on a GPU: block sizes, warps and stages are reasoned, not measured.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.cuda.kernels.paged_block import attend, padded_head, refuse_strides, score_factors

MAX_SPLITS = 64
"""The kernel that joins holds one tile of all splits: 64 of 256 dimensions are 64 KiB of registers."""

_PROGRAMS_PER_MULTIPROCESSOR = 4
_KEY_TILE_BYTES = 16 << 10
_MIN_GROUP = 16  # the rows of a matrix unit: a smaller group of query heads is padded


@dataclass(frozen=True, slots=True)
class DecodeWorkspace:
    """What the splits of a step found, until they are joined. One for all layers.

    Attributes:
        partials: float32 [max_rows, heads, splits, head_dim], attention over the keys of one split.
        logs: float32 [max_rows, heads, splits], log2 of the sum of exponentials of its scores.
    """

    partials: Tensor
    logs: Tensor

    @classmethod
    def make(cls, max_rows: int, heads: int, head_dim: int, splits: int, device: torch.device) -> "DecodeWorkspace":
        """
        Raises:
            ValueError: `splits` is not in 1 .. `MAX_SPLITS`.
        """
        if not 1 <= splits <= MAX_SPLITS:
            raise ValueError(f"{splits} splits; 1 to {MAX_SPLITS} are possible")
        logs = torch.empty((max_rows, heads, splits), dtype=torch.float32, device=device)
        return cls(partials=logs.new_empty((*logs.shape, head_dim)), logs=logs)

    @property
    def splits(self) -> int:
        return self.logs.shape[2]


@dataclass(frozen=True, slots=True)
class DecodeTiles:
    """How many keys a program takes at a time, and how it is launched."""

    block_keys: int
    num_warps: int
    num_stages: int


def tiles(head_dim: int, element_bytes: int) -> DecodeTiles:
    """Decode is bound by memory: what counts is how many bytes are on their way.

    A tile of keys has 16 KiB, as has its tile of values. 128 threads load it with eight accesses of 16 bytes each, and
    load the next one while they multiply. As compiled for Hopper (128 dimensions of bfloat16) a program then takes 38
    KiB of shared memory and 117 registers of a thread: four fit a multiprocessor, with 64 to 128 KiB in flight, while
    its share of 4.8 TB/s needs 29 KiB at a latency of 0.8 us. Beyond 128 keys the scores would only take registers;
    below 16 there is no matrix product. float32 runs on the plain units, whose unrolled products need the registers of
    twice as many threads.
    """
    keys = _KEY_TILE_BYTES // (padded_head(head_dim) * element_bytes)
    num_warps = 4 if element_bytes <= 2 else 8
    return DecodeTiles(block_keys=min(128, max(16, keys)), num_warps=num_warps, num_stages=3)


def good_splits(rows: int, kv_heads: int, multiprocessors: int) -> int:
    """As many as give each multiprocessor the four programs that fit; for a batch that fills the device alone, one.

    Not yet measured.
    """
    wanted = _PROGRAMS_PER_MULTIPROCESSOR * multiprocessors // (rows * kv_heads)
    return min(MAX_SPLITS, max(1, wanted))


def decode_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    page_table: Tensor,
    lengths: Tensor,
    out: Tensor,
    workspace: DecodeWorkspace,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> None:
    """Attention of one token of each row, into `out`. No synchronisation, no allocation: fit for a CUDA graph.

    Args:
        query, out: [rows, heads, head_dim], the last dimension contiguous. Query is rotated already.
        keys, values: [pages, page_tokens, kv_heads, head_dim], views with equal strides of one layer of the pool; the
            tokens' own keys are in it already.
        page_table: int32 [rows, columns]; only the entries of pages with keys in sight are read.
        lengths: int32 [rows], how many keys a row's token sees without a window, itself included. A row of length 0 is
            padding: its output is zeros and no key is read.
        workspace: for at least as many rows.
        window: a token at position p sees the keys p - window + 1 .. p; None: all up to p.
        softcap: scores pass through `softcap * tanh(score / softcap)` (Gemma 2, arXiv 2408.00118).

    Raises:
        ValueError: operands do not fit together, a mistake of the caller.
    """
    rows, heads, head_dim = query.shape
    kv_heads = keys.shape[2]
    if rows == 0:
        return
    refuse_strides(keys, values, query, out, page_table)
    if heads % kv_heads or rows > workspace.logs.shape[0] or workspace.partials.shape[1::2] != (heads, head_dim):
        raise ValueError(f"{query.shape} with {kv_heads} kv_heads and a workspace of {workspace.partials.shape}")
    group, splits = heads // kv_heads, workspace.splits
    tile = tiles(head_dim, query.element_size())
    before_cap, after_cap = score_factors(scale, softcap)
    _attend_split[(rows, kv_heads, splits)](
        query,
        keys,
        values,
        page_table,
        lengths,
        out,
        workspace.partials,
        workspace.logs,
        before_cap,
        after_cap,
        query.stride(0),
        query.stride(1),
        keys.stride(0),
        keys.stride(1),
        keys.stride(2),
        page_table.stride(0),
        out.stride(0),
        out.stride(1),
        GROUP=group,
        HEAD_DIM=head_dim,
        PAGE_TOKENS=keys.shape[1],
        WINDOW=window,
        CAPPED=softcap is not None,
        SPLITS=splits,
        BLOCK_GROUP=max(_MIN_GROUP, triton.next_power_of_2(group)),
        BLOCK_KEYS=tile.block_keys,
        BLOCK_DIM=padded_head(head_dim),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    if splits > 1:
        block_splits, block_dim = triton.next_power_of_2(splits), triton.next_power_of_2(head_dim)
        _join_splits[(rows, heads)](
            workspace.partials,
            workspace.logs,
            lengths,
            out,
            out.stride(0),
            out.stride(1),
            HEAD_DIM=head_dim,
            WINDOW=window,
            SPLITS=splits,
            BLOCK_KEYS=tile.block_keys,
            BLOCK_SPLITS=block_splits,
            BLOCK_DIM=block_dim,
            num_warps=4 if block_splits * block_dim <= 4096 else 8,  # at most 64 registers of a thread for the tile
        )


@triton.jit
def _shares(length, WINDOW: tl.constexpr, SPLITS: tl.constexpr, BLOCK_KEYS: tl.constexpr):
    """The first key in sight, how many keys a split has (whole blocks), and how many splits have any."""
    first = tl.maximum(length - WINDOW, 0) if WINDOW is not None else 0
    keys = length - first
    share = tl.maximum(tl.cdiv(tl.cdiv(keys, SPLITS), BLOCK_KEYS), 1) * BLOCK_KEYS
    return first, share, tl.cdiv(keys, share)


@triton.jit
def _attend_split(
    query,
    keys,
    values,
    page_table,
    lengths,
    out,
    partials,
    logs,
    before_cap,
    after_cap,
    query_row,
    query_head,
    page_stride,
    token_stride,
    head_stride,
    table_row,
    out_row,
    out_head,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    WINDOW: tl.constexpr,
    CAPPED: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """One split of one row's keys, for the query heads of one kv_head. Grid: (rows, kv_heads, splits)."""
    row = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    length = tl.load(lengths + row)
    first, share, used = _shares(length, WINDOW, SPLITS, BLOCK_KEYS)
    if split >= tl.maximum(used, 1):  # a padding row has its zeros from the first split
        return
    begin = first + split * share
    end = tl.minimum(begin + share, length)

    members = tl.arange(0, BLOCK_GROUP)
    dims = tl.arange(0, BLOCK_DIM)
    heads = kv_head * GROUP + members
    stored = (members < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
    asked = tl.load(query + row * query_row + heads[:, None] * query_head + dims[None, :], mask=stored, other=0.0)

    largest = tl.full([BLOCK_GROUP], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_GROUP], tl.float32)
    mixed = tl.zeros([BLOCK_GROUP, BLOCK_DIM], tl.float32)
    for start in range(begin, end, BLOCK_KEYS):
        positions = start + tl.arange(0, BLOCK_KEYS)
        exists = positions < end
        largest, total, mixed = attend(
            asked,
            largest,
            total,
            mixed,
            keys + kv_head * head_stride,
            values + kv_head * head_stride,
            page_table + row * table_row,
            positions,
            exists,
            exists[None, :],
            before_cap,
            after_cap,
            page_stride,
            token_stride,
            PAGE_TOKENS,
            HEAD_DIM,
            BLOCK_DIM,
            CAPPED,
            True,
        )
    mixed = mixed / tl.where(total > 0, total, 1.0)[:, None]
    if used <= 1:
        tl.store(out + row * out_row + heads[:, None] * out_head + dims[None, :], mixed, mask=stored)
    else:
        places = (row.to(tl.int64) * tl.num_programs(1) * GROUP + heads) * SPLITS + split
        tl.store(logs + places, largest + tl.log2(total), mask=members < GROUP)
        tl.store(partials + places[:, None] * HEAD_DIM + dims[None, :], mixed, mask=stored)


@triton.jit
def _join_splits(
    partials,
    logs,
    lengths,
    out,
    out_row,
    out_head,
    HEAD_DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """The output of one head of one row from its splits, if it has several. Grid: (rows, heads)."""
    row = tl.program_id(0)
    head = tl.program_id(1)
    _first, _share, used = _shares(tl.load(lengths + row), WINDOW, SPLITS, BLOCK_KEYS)
    if used <= 1:
        return
    splits = tl.arange(0, BLOCK_SPLITS)
    dims = tl.arange(0, BLOCK_DIM)
    places = (row.to(tl.int64) * tl.num_programs(1) + head) * SPLITS + splits
    found = tl.load(logs + places, mask=splits < used, other=float("-inf"))
    weights = tl.exp2(found - tl.max(found, 0))
    stored = (splits < used)[:, None] & (dims < HEAD_DIM)[None, :]
    mixed = tl.load(partials + places[:, None] * HEAD_DIM + dims[None, :], mask=stored, other=0.0)
    joined = tl.sum(mixed * weights[:, None], 0) / tl.sum(weights, 0)
    tl.store(out + row * out_row + head * out_head + dims, joined, mask=dims < HEAD_DIM)
