"""Does paged attention compute what attention is defined as?

Random steps through `paged_attention` itself, against one softmax per token in float64 over a plain list of keys.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.attention import PagedStep, UnsupportedAttention, paged_attention, paged_layers
from engine.batch import BatchBuilder, ForwardBatch, Window
from engine.layout import KvLayout
from engine.pool import KvPool
from engine.port import Row

HEAD_DIM = 4
LAYERS = 2
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    kv_heads: int
    group: int  # query heads per kv head
    page_tokens: int
    window: Window
    scaling: float | None
    softcap: float | None
    steps: list[list[int]]  # how many tokens each sequence feeds in each step
    seed: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    sequences = draw(st.integers(1, 5))
    tokens = st.one_of(st.integers(0, 2), st.integers(3, 14))
    return Case(
        kv_heads=draw(st.sampled_from([1, 2, 3])),
        group=draw(st.sampled_from([1, 3])),
        page_tokens=draw(st.sampled_from([1, 4, 16])),
        window=draw(st.sampled_from([None, 1, 3, 7])),
        scaling=draw(st.sampled_from([None, 0.3])),
        softcap=draw(st.sampled_from([None, 1.5])),
        steps=draw(st.lists(st.lists(tokens, min_size=sequences, max_size=sequences), min_size=1, max_size=5)),
        seed=draw(st.integers(0, 1000)),
    )


class Sequences:
    """Random queries, keys and values for the sequences of a case, in a pool and, as the oracle, in plain tensors."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.random = torch.Generator().manual_seed(case.seed)
        layout = KvLayout(LAYERS, case.page_tokens, case.kv_heads, HEAD_DIM, "float32", 4, "test")
        count = len(case.steps[0])
        pages_each = layout.pages_for(1 + sum(max(step) for step in case.steps))
        self.pool = KvPool(layout, pages_each * count, CPU)
        self.pool._pages.fill_(torch.nan)  # whatever is not a sequence's own must not be read
        scattered = torch.randperm(self.pool.total_pages, generator=self.random).tolist()
        self.pages = [scattered[i::count] for i in range(count)]
        self.builder = BatchBuilder(layout, frozenset({case.window}), CPU)
        empty = torch.empty(2, 0, case.kv_heads, HEAD_DIM)
        self.past = {(i, layer): empty for i in range(count) for layer in range(LAYERS)}  # [k|v, tokens, heads, dim]

    def check_step(self, counts: list[int]) -> None:
        rows = [Row([i] * n, self.past[i, 0].shape[1], self.pages[i], None) for i, n in enumerate(counts) if n]
        if not rows:
            return
        batch = self.builder.build(rows)
        self.pool.clear(batch.fresh_pages)
        for layer in range(LAYERS):
            self.check_layer(layer, batch)

    def check_layer(self, layer: int, batch: ForwardBatch) -> None:
        owners = batch.input_ids[0].tolist()  # a token's id is the number of its sequence
        kv_heads = self.case.kv_heads
        query = torch.randn(1, kv_heads * self.case.group, len(owners), HEAD_DIM, generator=self.random)
        key, value = torch.randn(2, 1, kv_heads, len(owners), HEAD_DIM, generator=self.random)
        output = self.attend(layer, batch, query, key, value)
        for t, owner in enumerate(owners):
            new = torch.stack([key[0, :, t], value[0, :, t]])[:, None]
            self.past[owner, layer] = torch.cat([self.past[owner, layer], new], dim=1)
            expected = naive(query[0, :, t], self.past[owner, layer], self.case)
            torch.testing.assert_close(output[0, t], expected, atol=2e-5, rtol=1e-4)

    def attend(self, layer: int, batch: ForwardBatch, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        case = self.case
        scratch = torch.full((2, batch.gather_planes, case.page_tokens * case.kv_heads * HEAD_DIM), torch.nan)
        output, _ = paged_attention(
            module(layer),
            query,
            key,
            value,
            None,
            kvrelay_step=PagedStep(batch, paged_layers(self.pool, [case.window] * LAYERS), scratch),
            scaling=case.scaling,
            sliding_window=case.window,
            softcap=case.softcap,
        )
        return output


def module(layer: int) -> Any:
    return SimpleNamespace(layer_idx=layer)


def naive(query: Tensor, past: Tensor, case: Case) -> Tensor:
    """One token: `query` [heads, dim] over `past` [k|v, tokens, kv_heads, dim], its own key last."""
    seen = past if case.window is None else past[:, -case.window :]
    keys, values = seen.double().repeat_interleave(case.group, dim=2)
    scores = torch.einsum("hd,thd->ht", query.double(), keys) * (case.scaling or HEAD_DIM**-0.5)
    if case.softcap is not None:
        scores = case.softcap * torch.tanh(scores / case.softcap)
    return torch.einsum("ht,thd->hd", scores.softmax(-1), values).float()


@settings(max_examples=150, deadline=None)
@given(cases())
def test_it_is_softmax_over_what_a_token_may_see(case: Case) -> None:
    sequences = Sequences(case)
    for counts in case.steps:
        sequences.check_step(counts)


PLAIN = Case(kv_heads=2, group=2, page_tokens=4, window=None, scaling=None, softcap=None, steps=[[5]], seed=0)


def call(**given: object) -> object:
    sequences = Sequences(PLAIN)
    batch = sequences.builder.build([Row([0] * 5, 0, sequences.pages[0], None)])
    step = PagedStep(batch, paged_layers(sequences.pool, [None] * LAYERS), torch.empty(2, 0, 4 * 2 * HEAD_DIM))
    tensors = {
        "query": torch.zeros(1, 4, 5, HEAD_DIM),
        "key": torch.zeros(1, 2, 5, HEAD_DIM),
        "value": torch.zeros(1, 2, 5, HEAD_DIM),
    }
    arguments: dict[str, Any] = {**tensors, "attention_mask": None, "kvrelay_step": step, **given}
    return paged_attention(module(0), **arguments)


def test_harmless_arguments_are_ignored() -> None:
    call(dropout=0.0, position_ids=torch.zeros(1, 5), use_cache=False, output_router_logits=False, s_aux=None)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        pytest.param({"kvrelay_step": None}, "does not pass keyword arguments", id="dropped keywords"),
        pytest.param({"s_aux": torch.zeros(4)}, "s_aux", id="sinks"),
        pytest.param({"position_bias": torch.zeros(4)}, "position_bias", id="bias"),
        pytest.param({"attention_mask": torch.zeros(1, 1, 5, 5)}, "a mask of its own", id="mask"),
        pytest.param({"is_causal": False}, "not causal", id="not causal"),
        pytest.param({"sliding_window": 3}, "over 3 tokens", id="another window"),
        pytest.param({"value": torch.zeros(1, 2, 5, 2)}, "what its cache keeps", id="small values"),
        pytest.param({"key": torch.zeros(1, 4, 5, 4), "value": torch.zeros(1, 4, 5, 4)}, "what its", id="more heads"),
    ],
)
def test_what_it_does_not_compute_it_refuses(given: dict[str, object], reason: str) -> None:
    with pytest.raises(UnsupportedAttention, match=reason):
        call(**given)
