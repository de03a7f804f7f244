"""How does a model attend to a paged KV cache on CUDA?

`paged_attention` is the attention function that transformers calls in every layer: it writes the keys and values of the
step and calls `attend`, which `engine.cuda.fuse` calls, too. Kernels read pages where they lie (`engine.cuda.kernels`).
A chunk that begins its prompt needs none: all it sees are keys of this very step, so torch's own attention takes it,
which is FlashAttention on a GPU that has it. Refusals are those of `engine.attention`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from engine.attention import AttentionModule, PagedLayer, given, layer_of, refuse_unknown
from engine.cuda.kernels import kv_write
from engine.cuda.kernels.paged_decode import DecodeWorkspace, decode_attention, good_splits
from engine.cuda.kernels.paged_prefill import prefill_attention
from engine.cuda.tables import DeviceTables, Outline

NAME = "kvrelay_cuda"


@dataclass(frozen=True, slots=True)
class Workspaces:
    """Where decode attention keeps its partial results: one workspace for every power of two of rows, made when it is
    first asked for. One stream runs all steps, so every layer, step and CUDA graph may use the same."""

    device: torch.device
    multiprocessors: int
    _made: dict[tuple[int, int, int, int], DecodeWorkspace] = field(default_factory=dict)

    def get(self, query: Tensor, kv_heads: int) -> DecodeWorkspace:
        """For `query`, [rows, heads, head_dim], at least one row."""
        rows, heads, head_dim = query.shape
        capacity = 1 << (rows - 1).bit_length()
        key = (capacity, heads, kv_heads, head_dim)
        if key not in self._made:
            splits = good_splits(capacity, kv_heads, self.multiprocessors)
            self._made[key] = DecodeWorkspace.make(capacity, heads, head_dim, splits, self.device)
        return self._made[key]


@dataclass(frozen=True, slots=True)
class PagedStep:
    """What one forward hands to its attention layers; `layers` are by `layer_idx`."""

    outline: Outline
    tables: DeviceTables
    layers: Sequence[PagedLayer]
    workspaces: Workspaces


@dataclass(frozen=True, slots=True)
class Scores:
    """How a layer makes its attention scores; None: without a soft-cap."""

    scale: float
    softcap: float | None


def paged_attention(  # noqa: PLR0913  # the signature is that of transformers
    module: AttentionModule,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    kvrelay_step: PagedStep | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """The attention of one layer over one step, called by the model.

    Args:
        query: [1, heads, tokens, head_dim]; `key`, `value`: [1, kv_heads, tokens, head_dim], rotated already.

    Returns:
        [1, tokens, heads, head_dim], and no weights.
    """
    step = given(kvrelay_step)
    refuse_unknown(module, attention_mask, others)
    layer = layer_of(module, step.layers, key, value, sliding_window)
    query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))
    kv_write.write(key, value, layer.cache.key_pages, layer.cache.value_pages, step.tables.slots)
    scores = Scores(query.shape[2] ** -0.5 if scaling is None else scaling, softcap)
    return attend(query, key, value, layer, step, scores)[None], None


def attend(query: Tensor, key: Tensor, value: Tensor, layer: PagedLayer, step: PagedStep, scores: Scores) -> Tensor:
    """The attention of one layer, whose pages have the keys and values of the step.

    Args:
        query: [tokens, heads, head_dim]; `key`, `value`: [tokens, kv_heads, head_dim], of this step.

    Returns:
        [tokens, heads, head_dim], contiguous.
    """
    out = query.new_empty(query.shape)
    if step.outline.chunks:
        _attend_chunks((query, key, value), out, layer, step, scores)
    if step.outline.decodes:
        _attend_decodes(query, out, layer, step, scores)
    return out


def _attend_chunks(
    projected: tuple[Tensor, Tensor, Tensor], out: Tensor, layer: PagedLayer, step: PagedStep, scores: Scores
) -> None:
    query = projected[0]
    outline, tables = step.outline, step.tables
    is_plain = scores.softcap is None and (layer.window is None or outline.longest(0, outline.opening) <= layer.window)
    first = outline.opening if is_plain else 0
    for i in range(first):
        tokens = slice(outline.starts[i], outline.starts[i + 1])
        own_query, key, value = (part[tokens].transpose(0, 1)[None] for part in projected)
        attended = scaled_dot_product_attention(
            own_query, key, value, is_causal=True, scale=scores.scale, enable_gqa=own_query.shape[1] != key.shape[1]
        )
        out[tokens] = attended[0].transpose(0, 1)
    if first < outline.chunks:
        prefill_attention(
            query,
            layer.cache.key_pages,
            layer.cache.value_pages,
            tables.page_table[first : outline.chunks],
            tables.later_starts if is_plain else tables.starts,
            tables.later_positions if is_plain else tables.first_positions,
            out,
            max_tokens=outline.longest(first, outline.chunks),
            scale=scores.scale,
            window=layer.window,
            softcap=scores.softcap,
        )


def _attend_decodes(query: Tensor, out: Tensor, layer: PagedLayer, step: PagedStep, scores: Scores) -> None:
    outline, cache = step.outline, layer.cache
    query, out = query[outline.chunk_tokens :], out[outline.chunk_tokens :]
    decode_attention(
        query,
        cache.key_pages,
        cache.value_pages,
        step.tables.page_table[outline.chunks :],
        step.tables.lengths,
        out,
        step.workspaces.get(query, cache.key_pages.shape[2]),
        scale=scores.scale,
        window=layer.window,
        softcap=scores.softcap,
    )
