"""How do the tokens of prompt chunks attend to their pages?

FlashAttention-2 (arXiv 2307.08691) over pages: a program has a block of queries of one chunk, and reads the keys that
they see block by block. The query heads that share a kv_head are rows of one block, token after token: so a short chunk
fills its blocks too, and a block spans few tokens, which leaves less of the causal triangle to waste. Several chunks
are one launch.

Has run: in Triton's interpreter on a CPU, in float32 and float16 (tests/unit/engine/cuda). Compiles for Hopper. Not yet
run on a GPU: block sizes, warps and stages are reasoned, not measured.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from engine.cuda.kernels.paged_block import attend, padded_head, refuse_strides, score_factors

_KEY_TILE_BYTES = 16 << 10


@dataclass(frozen=True, slots=True)
class PrefillTiles:
    """How many (token, head) pairs and how many keys a program takes at a time, and how it is launched."""

    block_queries: int
    block_keys: int
    num_warps: int
    num_stages: int


def tiles(head_dim: int, element_bytes: int, queries: int) -> PrefillTiles:
    """For chunks of at most `queries` (token, head) pairs per kv_head.

    16 bits: Hopper's matrix instruction has 64 rows and belongs to a warp group of four; two groups share each tile of
    keys, of 16 KiB. What bounds it are the 255 registers of a thread, of which the output alone takes 64 at 128
    dimensions and 128 at 256; these are the largest blocks that compile without spilling (194 registers and 96 KiB of
    shared memory at 128 dimensions, 247 and 128 KiB at 256 with a soft cap and a window). Two sizes of a query block
    only: each is compiled by itself, when it is first used.

    float32 runs on the plain units, whose products are unrolled: small blocks, or they would not fit the registers.
    """
    if element_bytes > 2:
        return PrefillTiles(block_queries=32, block_keys=16, num_warps=8, num_stages=2)
    block_queries, num_warps = (64, 4) if queries <= 64 else (128, 8)
    block_keys = min(128, _KEY_TILE_BYTES // (padded_head(head_dim) * element_bytes))
    return PrefillTiles(block_queries, block_keys, num_warps, num_stages=3)


def prefill_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    page_table: Tensor,
    starts: Tensor,
    positions: Tensor,
    out: Tensor,
    *,
    max_tokens: int,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> None:
    """Causal attention of the chunks of `rows` prompts, into `out`. No synchronisation, no allocation.

    Args:
        query, out: [tokens, heads, head_dim], the chunks one behind the other, the last dimension contiguous. Query is
            rotated already.
        keys, values: [pages, page_tokens, kv_heads, head_dim], views with equal strides of one layer of the pool; the
            chunks' own keys are in it already.
        page_table: int32 [rows, columns]; only the entries of pages with keys in sight are read.
        starts: int32 [rows + 1], where in `query` each chunk begins, and where the last one ends.
        positions: int32 [rows], the position of each chunk's first token.
        max_tokens: no chunk has more; the grid is as large as it.
        window, softcap: see `paged_decode.decode_attention`.

    Raises:
        ValueError: operands do not fit together, a mistake of the caller.
    """
    heads, head_dim = query.shape[1:]
    rows, kv_heads = positions.shape[0], keys.shape[2]
    if rows == 0 or max_tokens == 0:
        return
    refuse_strides(keys, values, query, out, page_table)
    if heads % kv_heads or starts.shape[0] != rows + 1:
        raise ValueError(f"{heads} heads, {kv_heads} kv_heads, {rows} positions, {starts.shape[0]} starts")
    group = heads // kv_heads
    tile = tiles(head_dim, query.element_size(), max_tokens * group)
    before_cap, after_cap = score_factors(scale, softcap)
    _attend_chunk[(triton.cdiv(max_tokens * group, tile.block_queries), rows, kv_heads)](
        query,
        keys,
        values,
        page_table,
        starts,
        positions,
        out,
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
        BLOCK_QUERIES=tile.block_queries,
        BLOCK_KEYS=tile.block_keys,
        BLOCK_DIM=padded_head(head_dim),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


@triton.jit
def _attend_chunk(
    query,
    keys,
    values,
    page_table,
    starts,
    positions,
    out,
    before_cap,
    after_cap,
    query_token,
    query_head,
    page_stride,
    token_stride,
    head_stride,
    table_row,
    out_token,
    out_head,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    WINDOW: tl.constexpr,
    CAPPED: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """One block of (token, head) pairs of one chunk and one kv_head. Grid: (blocks, rows, kv_heads)."""
    block = tl.num_programs(0) - 1 - tl.program_id(0)  # the last tokens see the most keys: they begin first
    row = tl.program_id(1)
    kv_head = tl.program_id(2)
    chunk = tl.load(starts + row)
    tokens = tl.load(starts + row + 1) - chunk
    base = tl.load(positions + row)
    pair = block * BLOCK_QUERIES
    if pair >= tokens * GROUP:
        return

    pairs = pair + tl.arange(0, BLOCK_QUERIES)
    dims = tl.arange(0, BLOCK_DIM)
    token = pairs // GROUP
    heads = kv_head * GROUP + pairs % GROUP
    stored = (token < tokens)[:, None] & (dims < HEAD_DIM)[None, :]
    rows = (chunk + token).to(tl.int64)
    asked_at = (rows * query_token + heads * query_head)[:, None] + dims[None, :]
    asked = tl.load(query + asked_at, mask=stored, other=0.0)

    # Keys up to `middle` are seen by every query of the block: no mask. With a window the old end needs one as well.
    first_position = base + pair // GROUP
    end = base + tl.minimum((pair + BLOCK_QUERIES - 1) // GROUP, tokens - 1) + 1
    begin = tl.maximum(first_position + 1 - WINDOW, 0) if WINDOW is not None else 0
    middle = begin if WINDOW is not None else (first_position + 1) // BLOCK_KEYS * BLOCK_KEYS

    largest = tl.full([BLOCK_QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_QUERIES], tl.float32)
    mixed = tl.zeros([BLOCK_QUERIES, BLOCK_DIM], tl.float32)
    for start in range(begin, middle, BLOCK_KEYS):
        key_positions = start + tl.arange(0, BLOCK_KEYS)
        exists = key_positions < middle
        largest, total, mixed = attend(
            asked,
            largest,
            total,
            mixed,
            keys + kv_head * head_stride,
            values + kv_head * head_stride,
            page_table + row * table_row,
            key_positions,
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
            False,
        )
    for start in range(middle, end, BLOCK_KEYS):
        key_positions = start + tl.arange(0, BLOCK_KEYS)
        behind = (base + token)[:, None] - key_positions[None, :]
        visible = (behind >= 0) & (behind < WINDOW) if WINDOW is not None else behind >= 0
        largest, total, mixed = attend(
            asked,
            largest,
            total,
            mixed,
            keys + kv_head * head_stride,
            values + kv_head * head_stride,
            page_table + row * table_row,
            key_positions,
            key_positions < end,
            visible,
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
    mixed = mixed / tl.where(total > 0, total, 1.0)[:, None]  # pairs behind the chunk's end may have seen no key
    out_at = (rows * out_token + heads * out_head)[:, None] + dims[None, :]
    tl.store(out + out_at, mixed, mask=stored)
