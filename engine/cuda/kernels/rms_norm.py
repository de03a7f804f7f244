"""How is a hidden state normalised, and the residual added on the way?

RMSNorm (Zhang, Sennrich, arXiv 1910.07467) with the roundings of transformers' Llama: statistics in float32, back to
the element type, then times the weight. One pass over memory instead of one for each operation.

Has run: in Triton's interpreter on a CPU, in float32 and float16 (tests/unit/engine/cuda). Compiles for Hopper. Not yet
run on a GPU: warps are reasoned, not measured.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


def warps(size: int) -> int:
    """A row is one program: 16 elements of a thread, so that a row of 4096 has two accesses of 16 bytes in flight."""
    padded: int = triton.next_power_of_2(size)
    return min(16, max(1, padded // 512))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / rms(x) * weight` over the last dimension. Fit for a CUDA graph.

    Args:
        x: [..., size]; may be a view, such as the heads of a fused projection.
        weight: [size]
    """
    return _normalise(x, None, weight, eps)[0]


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`rms_norm(x + residual)` and `x + residual`, both new. The operands have one shape and element type."""
    return _normalise(x, residual, weight, eps)


def _normalise(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    size = x.shape[-1]
    rows = _by_row(x)
    added_rows = rows if residual is None else _by_row(residual)
    normed = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, weight.dtype), device=x.device)
    total = x if residual is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    outer, inner = rows.shape[:2]
    if x.numel():
        _norm[(outer * inner,)](
            rows,
            added_rows,
            weight,
            normed,
            total,
            eps,
            inner,
            rows.stride(0),
            rows.stride(1),
            added_rows.stride(0),
            added_rows.stride(1),
            SIZE=size,
            ADD=residual is not None,
            BLOCK=triton.next_power_of_2(size),
            num_warps=warps(size),
        )
    return normed, total


def _by_row(x: Tensor) -> Tensor:
    """[outer, inner, size], the last dimension contiguous; a view wherever one exists."""
    if x.stride(-1) != 1:
        x = x.contiguous()
    if x.dim() < 3:
        return x.reshape(1, -1, x.shape[-1])
    return x.flatten(0, -3)


@triton.jit
def _norm(
    x,
    residual,
    weight,
    normed,
    total,
    eps,
    inner,
    x_outer,
    x_inner,
    residual_outer,
    residual_inner,
    SIZE: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row. Without ADD `residual` is not read and `total` not written. Grid: (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    stored = at < SIZE
    hidden = tl.load(x + (row // inner) * x_outer + (row % inner) * x_inner + at, mask=stored, other=0.0)
    if ADD:
        residual_at = residual + (row // inner) * residual_outer + (row % inner) * residual_inner + at
        added = hidden.to(tl.float32) + tl.load(residual_at, mask=stored, other=0.0).to(tl.float32)
        hidden = added.to(hidden.dtype)
        tl.store(total + row * SIZE + at, hidden, mask=stored)
    wide = hidden.to(tl.float32)
    scaled = (wide * tl.rsqrt(tl.sum(wide * wide, 0) / SIZE + eps)).to(hidden.dtype)
    weights = tl.load(weight + at, mask=stored, other=0.0).to(tl.float32)
    tl.store(normed + row * SIZE + at, scaled.to(tl.float32) * weights, mask=stored)
