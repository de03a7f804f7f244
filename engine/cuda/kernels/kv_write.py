"""How do a step's keys and values get into their pages?

One pass over memory: `write` copies, `rotate_and_write` also turns queries and keys by their position (rotary
embedding, Su et al., arXiv 2104.09864, in the form of transformers' Llama: the halves of a head are the pairs).

Has run: in Triton's interpreter on a CPU, in float32 and float16 (tests/unit/engine/cuda). Compiles for Hopper. Not yet
run on a GPU: warps are reasoned, not measured.
"""

import triton
import triton.language as tl
from torch import Tensor

from engine.cuda.kernels.paged_block import refuse_strides


def warps(elements: int) -> int:
    """Bound by memory: eight elements of a thread are one access of 16 bytes in 16 bits. At least a warp, at most 8."""
    return min(8, max(1, elements // 256))


def write(key: Tensor, value: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> None:
    """Copy each token's key and value to its slot. No synchronisation, no allocation: fit for a CUDA graph.

    Args:
        key, value: [tokens, kv_heads, head_dim], the last dimension contiguous.
        keys, values: [pages, page_tokens, kv_heads, head_dim], views with equal strides of one layer of the pool.
        slots: int64 [tokens], page * page_tokens + offset; -1 is padding: nothing is read or written. Slots differ.

    Raises:
        ValueError: operands do not fit together, a mistake of the caller.
    """
    tokens, kv_heads, head_dim = key.shape
    if tokens == 0:
        return
    refuse_strides(keys, values, key, value)
    block_heads, block_dim = triton.next_power_of_2(kv_heads), triton.next_power_of_2(head_dim)
    _write[(tokens,)](
        key,
        value,
        keys,
        values,
        slots,
        key.stride(0),
        key.stride(1),
        value.stride(0),
        value.stride(1),
        keys.stride(0),
        keys.stride(1),
        keys.stride(2),
        KV_HEADS=kv_heads,
        HEAD_DIM=head_dim,
        PAGE_TOKENS=keys.shape[1],
        BLOCK_HEADS=block_heads,
        BLOCK_DIM=block_dim,
        num_warps=warps(block_heads * block_dim),
    )


def rotate_and_write(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
) -> None:
    """Rotate query and key in place, and write key and value to their slots.

    Computes in float32 and rounds once, where transformers rounds each product.

    Args:
        query: [tokens, heads, head_dim], the last dimension contiguous.
        cos, sin: [tokens, rotary_dim]; the dimensions of a head from rotary_dim on stay as they are.
        key, value, keys, values, slots: see `write`. A token of slot -1 is not rotated.

    Raises:
        ValueError: operands do not fit together, a mistake of the caller.
    """
    tokens, heads, head_dim = query.shape
    kv_heads, rotary_dim = key.shape[1], cos.shape[1]
    if tokens == 0:
        return
    refuse_strides(keys, values, query, key, value, cos, sin)
    if heads % kv_heads or rotary_dim % 2 or rotary_dim > head_dim or cos.shape != sin.shape:
        raise ValueError(f"{heads} heads, {kv_heads} kv_heads of {head_dim}, {cos.shape} cosines, {sin.shape} sines")
    group, half = heads // kv_heads, rotary_dim // 2
    block_group, block_half = triton.next_power_of_2(group), triton.next_power_of_2(half)
    _rotate_and_write[(tokens, kv_heads)](
        query,
        key,
        value,
        cos,
        sin,
        keys,
        values,
        slots,
        query.stride(0),
        query.stride(1),
        key.stride(0),
        key.stride(1),
        value.stride(0),
        value.stride(1),
        cos.stride(0),
        sin.stride(0),
        keys.stride(0),
        keys.stride(1),
        keys.stride(2),
        GROUP=group,
        HEAD_DIM=head_dim,
        HALF=half,
        PAGE_TOKENS=keys.shape[1],
        BLOCK_GROUP=block_group,
        BLOCK_HALF=block_half,
        BLOCK_REST=triton.next_power_of_2(max(1, head_dim - rotary_dim)),
        BLOCK_DIM=triton.next_power_of_2(head_dim),
        num_warps=warps(block_group * block_half),
    )


@triton.jit
def _write(
    key,
    value,
    keys,
    values,
    slots,
    key_token,
    key_head,
    value_token,
    value_head,
    page_stride,
    token_stride,
    head_stride,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """One token. Grid: (tokens,)."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token)
    if slot < 0:
        return
    place = (slot // PAGE_TOKENS) * page_stride + (slot % PAGE_TOKENS) * token_stride
    heads = tl.arange(0, BLOCK_HEADS)[:, None]
    dims = tl.arange(0, BLOCK_DIM)[None, :]
    stored = (heads < KV_HEADS) & (dims < HEAD_DIM)
    target = place + heads * head_stride + dims
    tl.store(keys + target, tl.load(key + token * key_token + heads * key_head + dims, mask=stored), mask=stored)
    tl.store(
        values + target, tl.load(value + token * value_token + heads * value_head + dims, mask=stored), mask=stored
    )


@triton.jit
def _rotate_and_write(
    query,
    key,
    value,
    cos,
    sin,
    keys,
    values,
    slots,
    query_token,
    query_head,
    key_token,
    key_head,
    value_token,
    value_head,
    cos_token,
    sin_token,
    page_stride,
    token_stride,
    head_stride,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """One kv_head of one token, with the query heads that share it. Grid: (tokens, kv_heads)."""
    token = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    slot = tl.load(slots + token)
    if slot < 0:
        return
    half = tl.arange(0, BLOCK_HALF)
    rotated = half < HALF
    cos_low = tl.load(cos + token * cos_token + half, mask=rotated, other=0.0).to(tl.float32)
    cos_high = tl.load(cos + token * cos_token + HALF + half, mask=rotated, other=0.0).to(tl.float32)
    sin_low = tl.load(sin + token * sin_token + half, mask=rotated, other=0.0).to(tl.float32)
    sin_high = tl.load(sin + token * sin_token + HALF + half, mask=rotated, other=0.0).to(tl.float32)

    members = tl.arange(0, BLOCK_GROUP)
    asked = (members < GROUP)[:, None] & rotated[None, :]
    query_at = query + token * query_token + (kv_head * GROUP + members)[:, None] * query_head + half[None, :]
    low = tl.load(query_at, mask=asked, other=0.0).to(tl.float32)
    high = tl.load(query_at + HALF, mask=asked, other=0.0).to(tl.float32)
    tl.store(query_at, low * cos_low[None, :] - high * sin_low[None, :], mask=asked)
    tl.store(query_at + HALF, high * cos_high[None, :] + low * sin_high[None, :], mask=asked)

    place = (slot // PAGE_TOKENS) * page_stride + (slot % PAGE_TOKENS) * token_stride + kv_head * head_stride
    key_at = key + token * key_token + kv_head * key_head
    low = tl.load(key_at + half, mask=rotated, other=0.0).to(tl.float32)
    high = tl.load(key_at + HALF + half, mask=rotated, other=0.0).to(tl.float32)
    new_low = low * cos_low - high * sin_low
    new_high = high * cos_high + low * sin_high
    tl.store(key_at + half, new_low, mask=rotated)
    tl.store(key_at + HALF + half, new_high, mask=rotated)
    tl.store(keys + place + half, new_low, mask=rotated)
    tl.store(keys + place + HALF + half, new_high, mask=rotated)
    if HEAD_DIM > 2 * HALF:
        rest = 2 * HALF + tl.arange(0, BLOCK_REST)
        tl.store(keys + place + rest, tl.load(key_at + rest, mask=rest < HEAD_DIM), mask=rest < HEAD_DIM)

    dims = tl.arange(0, BLOCK_DIM)
    value_at = value + token * value_token + kv_head * value_head + dims
    tl.store(values + place + dims, tl.load(value_at, mask=dims < HEAD_DIM), mask=dims < HEAD_DIM)
