"""Do a step's keys and values get into their slots, and nothing else into any?"""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from engine.cuda.kernels.kv_write import rotate_and_write, write
from tests.support.plain_kernels import Shape, Source, assert_close, bits, dtypes, rotate


@dataclass(frozen=True)
class Case:
    shape: Shape  # heads, kv_heads, head_dim, page_tokens
    rotary_dim: int


CASES = (
    Case(Shape(2, 2, 16, 4), 16),
    Case(Shape(4, 2, 80, 16), 80),
    Case(Shape(9, 3, 96, 1), 24),
    Case(Shape(8, 1, 128, 7), 128),
    Case(Shape(12, 6, 256, 4), 64),
)
NUMBERED = [
    pytest.param(case, dtype, id=f"{number}-{str(dtype).removeprefix('torch.')}")
    for number, case in enumerate(CASES)
    for dtype in dtypes(number, on_gpu=torch.cuda.is_available())
]
TOKENS, PADDING = 6, (1, 5)


@dataclass(frozen=True)
class Step:
    """Tokens whose query, key and value are views of one fused projection, and the slots where they go."""

    fused: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    slots: Tensor
    pool: Tensor  # [pages, layers, k|v, page_tokens, kv_heads, head_dim]

    @property
    def keys(self) -> Tensor:
        return self.pool[:, 1, 0]

    @property
    def values(self) -> Tensor:
        return self.pool[:, 1, 1]

    def pool_with(self, key: Tensor, value: Tensor) -> Tensor:
        """A copy of the pool in which the step has been written."""
        pool = self.pool.clone()
        for token, slot in enumerate(self.slots.tolist()):
            if slot >= 0:
                page, offset = divmod(slot, pool.shape[3])
                pool[page, 1, 0, offset], pool[page, 1, 1, offset] = key[token], value[token]
        return pool


def step(source: Source, shape: Shape) -> Step:
    fused = source.normal(TOKENS, shape.heads + 2 * shape.kv_heads, shape.head_dim)
    query, key, value = fused[:, : shape.heads], fused[:, shape.heads : -shape.kv_heads], fused[:, -shape.kv_heads :]
    pages = -(-TOKENS // shape.page_tokens) + 1
    slots = source.order(pages * shape.page_tokens)[:TOKENS]
    slots[list(PADDING)] = -1
    pool = source.poison(pages, 2, 2, shape.page_tokens, shape.kv_heads, shape.head_dim)
    return Step(fused, query, key, value, slots.to(source.device), pool)


@pytest.mark.parametrize(("case", "dtype"), NUMBERED)
def test_keys_and_values_are_copied_to_their_slots(case: Case, dtype: torch.dtype, device: torch.device) -> None:
    tokens = step(Source(device, dtype, seed=1), case.shape)
    expected, before = bits(tokens.pool_with(tokens.key, tokens.value)), bits(tokens.fused)
    write(tokens.key, tokens.value, tokens.keys, tokens.values, tokens.slots)
    assert torch.equal(bits(tokens.pool), expected)
    assert torch.equal(bits(tokens.fused), before)


@pytest.mark.parametrize(("case", "dtype"), NUMBERED)
def test_queries_and_keys_are_rotated_where_they_are(case: Case, dtype: torch.dtype, device: torch.device) -> None:
    source = Source(device, dtype, seed=2)
    tokens = step(source, case.shape)
    cos, sin = source.normal(TOKENS, case.rotary_dim), source.normal(TOKENS, case.rotary_dim)
    before = tokens.fused.clone()
    query, key = rotate(tokens.query, cos, sin), rotate(tokens.key, cos, sin)
    rotate_and_write(tokens.query, tokens.key, tokens.value, cos, sin, tokens.keys, tokens.values, tokens.slots)
    real = tokens.slots >= 0
    assert_close(tokens.query[real], query[real])
    assert_close(tokens.key[real], key[real])
    assert torch.equal(bits(tokens.fused[~real]), bits(before[~real]))
    assert torch.equal(bits(tokens.value), bits(before[:, -case.shape.kv_heads :]))
    rest = slice(case.rotary_dim, None)
    assert torch.equal(bits(tokens.fused[..., rest]), bits(before[..., rest]))
    unwritten = replace(tokens, pool=torch.full_like(tokens.pool, torch.nan))
    assert torch.equal(bits(tokens.pool), bits(unwritten.pool_with(tokens.key, tokens.value)))


def test_a_step_without_tokens_is_no_launch(device: torch.device) -> None:
    tokens = step(Source(device, torch.float32, seed=3), Shape(2, 1, 16, 4))
    before = bits(tokens.pool)
    cos = torch.empty(0, 16, device=device)
    nothing = tokens.key[:0], tokens.value[:0]
    write(*nothing, tokens.keys, tokens.values, tokens.slots[:0])
    rotate_and_write(tokens.query[:0], *nothing, cos, cos, tokens.keys, tokens.values, tokens.slots[:0])
    assert torch.equal(bits(tokens.pool), before)


@pytest.mark.parametrize("rotary_dim", [15, 18])
def test_a_rotation_that_does_not_fit_a_head_is_refused(rotary_dim: int, device: torch.device) -> None:
    source = Source(device, torch.float32, seed=4)
    tokens = step(source, Shape(2, 1, 16, 4))
    cos = source.normal(TOKENS, rotary_dim)
    with pytest.raises(ValueError, match="cosines"):
        rotate_and_write(tokens.query, tokens.key, tokens.value, cos, cos, tokens.keys, tokens.values, tokens.slots)
