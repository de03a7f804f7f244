"""What do the kernels of `engine.cuda.kernels` compute, written plainly, and how does a test lay sequences into pages?

The references take and give float64. Sequences lie scattered in a pool of NaN: a kernel that reads a page or a slot
that it has no business with shows it in its output.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Absolute and relative, for inputs of about 1: some units in the last place."""

_LAYERS, _LAYER = 3, 1


def dtypes(number: int, on_gpu: bool) -> tuple[torch.dtype, ...]:
    """Of the case with this number: in turn float32 and float16, and on a GPU bfloat16 as well, which the interpreter
    does not know."""
    return ((torch.float32, torch.float16)[number % 2], *((torch.bfloat16,) if on_gpu else ()))


def attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    first_position: int,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Causal attention of [tokens, heads, head_dim] at consecutive positions over [keys, kv_heads, head_dim]."""
    group = query.shape[1] // keys.shape[1]
    query, keys, values = query.double(), keys.double(), values.double()
    keys, values = keys.repeat_interleave(group, dim=1), values.repeat_interleave(group, dim=1)
    scores = torch.einsum("thd,khd->htk", query, keys) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    positions = torch.arange(first_position, first_position + len(query), device=query.device)
    behind = positions[:, None] - torch.arange(len(keys), device=query.device)
    hidden = behind < 0 if window is None else (behind < 0) | (behind >= window)
    weights = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)
    return torch.einsum("htk,khd->thd", weights, values)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """transformers' `apply_rotary_pos_emb` of [tokens, heads, head_dim]; cos and sin are [tokens, rotary_dim]."""
    x, cos, sin = x.double(), cos.double()[:, None], sin.double()[:, None]
    turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    low, high = turned.chunk(2, dim=-1)
    return torch.cat([turned * cos + torch.cat([-high, low], dim=-1) * sin, rest], dim=-1)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x = x.double()
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * weight.double()


def silu_and_mul(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.double().chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * up


def assert_close(computed: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCE[computed.dtype]
    torch.testing.assert_close(computed.double(), expected, atol=tolerance, rtol=tolerance)


def bits(tensor: Tensor) -> Tensor:
    """A copy to compare memory with: NaN equals itself."""
    copy = tensor.clone(memory_format=torch.contiguous_format)
    return copy.view(torch.int16 if tensor.element_size() == 2 else torch.int32)


@dataclass(frozen=True)
class Shape:
    """What a kernel sees of a model and of its pages."""

    heads: int
    kv_heads: int
    head_dim: int
    page_tokens: int


@dataclass(frozen=True)
class Paged:
    """Sequences in a pool.

    Attributes:
        pool: [pages, layers, k|v, page_tokens, kv_heads, head_dim]; the sequences are in one layer, all else is NaN.
        table: int32 [rows, columns].
        sequences: of each row its keys and values, [k|v, tokens, kv_heads, head_dim].
    """

    pool: Tensor
    table: Tensor
    sequences: tuple[Tensor, ...]

    @property
    def keys(self) -> Tensor:
        return self.pool[:, _LAYER, 0]

    @property
    def values(self) -> Tensor:
        return self.pool[:, _LAYER, 1]


class Source:
    """Random numbers of one case, on one device and of one type."""

    def __init__(self, device: torch.device, dtype: torch.dtype, seed: int) -> None:
        self.device = device
        self.dtype = dtype
        self._random = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._random).to(self.dtype).to(self.device)

    def order(self, count: int) -> Tensor:
        return torch.randperm(count, generator=self._random)

    def poison(self, *shape: int) -> Tensor:
        return torch.full(shape, torch.nan, dtype=self.dtype, device=self.device)

    def paged(self, shape: Shape, lengths: Sequence[int], unseen: Sequence[int] | None = None) -> Paged:
        """Sequences of these lengths on scattered pages.

        `unseen` gives the number of a row's first tokens that nobody may read: they are NaN, and whole pages of them
        are not in the table. Without it rows of more than a page share their first one.
        """
        size = shape.page_tokens
        counts = [-(-length // size) for length in lengths]
        pages = self.order(sum(counts) + 1).tolist()
        bad_page = pages.pop()
        pool = self.poison(len(pages) + 1, _LAYERS, 2, size, shape.kv_heads, shape.head_dim)
        table = torch.full((len(lengths), max(counts) + 1), bad_page)
        sequences: list[Tensor] = []
        shared: tuple[int, Tensor] | None = None
        for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
            own, pages = pages[:count], pages[count:]
            sequence = self.normal(2, length, shape.kv_heads, shape.head_dim)
            if unseen is None and length >= size:
                shared = shared or (own[0], sequence[:, :size])
                own[0], sequence[:, :size] = shared
            elif unseen is not None:
                sequence[:, : unseen[row]] = torch.nan
            for at, page in enumerate(own):
                part = sequence[:, at * size : (at + 1) * size]
                pool[page, _LAYER, :, : part.shape[1]] = part
                if unseen is None or (at + 1) * size > unseen[row]:
                    table[row, at] = page
            sequences.append(sequence)
        return Paged(pool, table.to(torch.int32).to(self.device), tuple(sequences))

    def int32(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self.device)
