"""How do queries attend to one block of keys that lie in pages?

What decode and prefill have in common: where a position's key is, the score of a query and a key, and one step of the
online softmax (Milakov, Gimelshein, arXiv 1805.02867; FlashAttention-2, arXiv 2307.08691). Scores are kept as exponents
of 2, because that is the exponential which the hardware has. Scores, weights' sum and output accumulate in float32.

A page number times the stride of a page is a 64-bit product: a pool has more than 2**31 elements.
"""

import math

import triton
import triton.language as tl
from torch import Tensor

LOG2_E = math.log2(math.e)


def score_factors(scale: float, softcap: float | None) -> tuple[float, float]:
    """What a score is multiplied with before and after the soft cap."""
    if softcap is None:
        return scale * LOG2_E, 1.0
    return scale / softcap, softcap * LOG2_E


def padded_head(head_dim: int) -> int:
    """A head as a block has it: a power of two, and at least 16 for a matrix unit."""
    padded: int = triton.next_power_of_2(head_dim)
    return max(16, padded)


def refuse_strides(keys: Tensor, values: Tensor, *others: Tensor) -> None:
    """
    Raises:
        ValueError: keys and values do not lie in their pages alike, or a head is not contiguous: the kernels have one
            offset for both. A mistake of the caller.
    """
    if keys.shape != values.shape or keys.stride() != values.stride():
        raise ValueError(f"keys and values differ: {keys.shape} {keys.stride()}, {values.shape} {values.stride()}")
    for tensor in (keys, *others):
        if tensor.stride(-1) != 1:
            raise ValueError(f"the last dimension is not contiguous: {tensor.shape} {tensor.stride()}")


@triton.jit
def attend(
    query,
    largest,
    total,
    mixed,
    keys,
    values,
    pages,
    positions,
    exists,
    visible,
    before_cap,
    after_cap,
    page_stride,
    token_stride,
    PAGE_TOKENS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    CAPPED: tl.constexpr,
    MASKED: tl.constexpr,
):
    """The state (`largest`, `total`, `mixed`) of `query` [m, d] after n more keys.

    Args:
        largest, total: float32 [m], the largest score so far and the sum of the weights relative to it.
        mixed: float32 [m, d], the values summed with these weights.
        keys, values: where the kv_head has its key and value of token 0 of page 0.
        pages: the row of the page table.
        positions: int32 [n]; only those that `exist` [n] are read.
        visible: [m or 1, n], which key a query sees; looked at if MASKED. A query may see none.
    """
    dims = tl.arange(0, BLOCK_DIM)
    page = tl.load(pages + positions // PAGE_TOKENS, mask=exists, other=0).to(tl.int64)
    tokens = page * page_stride + (positions % PAGE_TOKENS) * token_stride
    places = tokens[:, None] + dims[None, :]
    stored = exists[:, None] & (dims < HEAD_DIM)[None, :]

    key = tl.load(keys + places, mask=stored, other=0.0)
    # ieee: float32 is there to be exact; it has no meaning for 16 bits
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * before_cap
    if CAPPED:
        scores = _tanh(scores) * after_cap
    if MASKED:
        scores = tl.where(visible, scores, float("-inf"))

    new_largest = tl.maximum(largest, tl.max(scores, 1))
    base = tl.where(new_largest == float("-inf"), 0.0, new_largest)  # of a query that has seen no key yet
    weights = tl.exp2(scores - base[:, None])
    decay = tl.exp2(largest - base)

    value = tl.load(values + places, mask=stored, other=0.0)
    mixed = tl.dot(weights.to(value.dtype), value, mixed * decay[:, None], input_precision="ieee")
    total = total * decay + tl.sum(weights, 1)
    return new_largest, total, mixed


@triton.jit
def _tanh(x):
    """From the exponential of a negative number, which cannot overflow."""
    small = tl.exp(-2.0 * tl.abs(x))
    size = (1.0 - small) / (1.0 + small)
    return tl.where(x < 0, -size, size)
