"""How does a transformers model attend to a paged KV cache?

`install` plugs an attention function into a model through `transformers.AttentionInterface`; `logits` runs one step.
The step travels as a keyword argument from the model's forward to every attention layer: no global, no state on
modules. No mask function is registered under our names, so transformers builds no mask. What a function must refuse is
here, too (`given`, `refuse_unknown`, `layer_of`). Runs on the engine thread.

`paged_attention` is the function for a CPU (that for CUDA: `engine.cuda.attention`).

Keys and values of the step are written to their slots first; then each group of rows (`engine.batch`) attends over its
gathered pages with one call of scaled_dot_product_attention. A gather costs about a quarter of the attention it feeds
and lets the fused kernels of any device do the rest.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from engine.batch import ForwardBatch, Group, Window
from engine.pool import KvPool, LayerCache

NAME = "kvrelay_paged"
_HARMLESS = frozenset({"dropout", "is_causal", "position_ids", "use_cache", "cache_position", "past_key_values"})

Step = TypeVar("Step")


class AttentionModule(Protocol):
    """What a model's attention layer says of itself."""

    layer_idx: int


class UnsupportedAttention(Exception):
    """A layer asked for something that paged attention does not compute. It shows at the first forward."""


@dataclass(frozen=True, slots=True)
class PagedLayer:
    """Where a layer's keys and values are, and how far back it attends."""

    cache: LayerCache
    window: Window


def paged_layers(pool: KvPool, windows: Sequence[Window]) -> tuple[PagedLayer, ...]:
    return tuple(PagedLayer(cache, window) for cache, window in zip(pool.layers(), windows, strict=True))


@dataclass(frozen=True, slots=True)
class PagedStep:
    """What one forward hands to its attention layers.

    Attributes:
        layers: one per layer of the model, by `layer_idx`.
        scratch: [k|v, planes, plane], where a group's pages are gathered. One for all layers and groups: a fresh
            tensor of this size would be page faults each time.
    """

    batch: ForwardBatch
    layers: Sequence[PagedLayer]
    scratch: Tensor


def install(model: PreTrainedModel, name: str, function: Callable[..., tuple[Tensor, None]]) -> None:
    AttentionInterface.register(name, function)
    model.set_attn_implementation(name)


def logits(
    model: PreTrainedModel, input_ids: Tensor, position_ids: Tensor, sampled: Tensor, kvrelay_step: object
) -> Tensor:
    """One forward of a model with an installed attention function; writes the step's keys and values.

    Args:
        input_ids, position_ids: int64 [1, tokens].
        sampled: int64 [samples], the tokens whose logits are wanted.
        kvrelay_step: what the function wants to know of the step.

    Returns:
        [samples, vocab], in the model's dtype.

    Raises:
        UnsupportedAttention: the model's attention is not one that the function computes.
    """
    output = model(
        input_ids=input_ids,
        position_ids=position_ids,
        use_cache=False,
        logits_to_keep=sampled,
        kvrelay_step=kvrelay_step,
    )
    samples: Tensor = output.logits[0]
    return samples


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
    _write(layer.cache, step.batch.slots, key, value)
    outputs = []
    for group in step.batch.groups[layer.window]:
        keys, values = _read(layer.cache, group, key, value, step.scratch)
        queries = _queries(query, group, keys.shape[1])
        attended = _attend(queries, keys, values, group, scaling, softcap)
        outputs.append(_by_token(attended, group, query.shape[1]))
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs))[None], None


def given(step: Step | None) -> Step:
    """
    Raises:
        UnsupportedAttention: the step did not come through.
    """
    if step is None:
        raise UnsupportedAttention("the model does not pass keyword arguments on to its attention")
    return step


def refuse_unknown(module: AttentionModule, attention_mask: Tensor | None, others: Mapping[str, object]) -> None:
    """
    Raises:
        UnsupportedAttention: a mask, an argument that means something, or attention that is not causal.
    """
    unknown = [k for k, given in others.items() if given is not None and given is not False and k not in _HARMLESS]
    if unknown or attention_mask is not None:
        raise UnsupportedAttention(f"its attention wants {unknown or 'a mask of its own'}")
    if others.get("is_causal") is False or not getattr(module, "is_causal", True):
        raise UnsupportedAttention("its attention is not causal")


def layer_of(
    module: AttentionModule, layers: Sequence[PagedLayer], key: Tensor, value: Tensor, sliding_window: int | None
) -> PagedLayer:
    """The layer whose attention is asked for.

    Raises:
        UnsupportedAttention: keys and values are not what its pages hold, or its window is another.
    """
    layer = layers[module.layer_idx]
    if key.shape != value.shape or key.shape[1] * key.shape[3] != layer.cache.key_rows.shape[1]:
        raise UnsupportedAttention("what its cache keeps is not what it attends to")
    if sliding_window != layer.window:
        raise UnsupportedAttention(
            f"a layer attends over {sliding_window} tokens, its configuration says {layer.window}"
        )
    return layer


def _write(cache: LayerCache, slots: Tensor, key: Tensor, value: Tensor) -> None:
    cache.key_rows.index_copy_(0, slots, key[0].transpose(0, 1).flatten(1))
    cache.value_rows.index_copy_(0, slots, value[0].transpose(0, 1).flatten(1))


def _read(cache: LayerCache, group: Group, key: Tensor, value: Tensor, scratch: Tensor) -> tuple[Tensor, Tensor]:
    """What a group attends to: two tensors [rows, kv_heads, keys, head_dim], views of the scratch or of the step."""
    if group.planes is None:
        return key[:, :, group.start : group.stop], value[:, :, group.start : group.stop]
    kv_heads, head_dim = key.shape[1], key.shape[3]
    gathered = scratch[:, : group.planes.shape[0]]
    torch.index_select(cache.key_planes, 0, group.planes, out=gathered[0])
    torch.index_select(cache.value_planes, 0, group.planes, out=gathered[1])
    both = gathered.view(2, group.rows, -1, kv_heads, head_dim).transpose(2, 3)[:, :, :, group.keys]
    return both[0], both[1]


def _queries(query: Tensor, group: Group, kv_heads: int) -> Tensor:
    """A chunk: [1, heads, tokens, head_dim]. Decode rows: [rows, kv_heads, heads per kv_head, head_dim].

    The second form passes the heads that share a kv_head off as queries of it: no key is read twice. It is exact
    because one token has no order to mask, and five times as fast as the plain form in bfloat16 on a CPU.
    """
    queries = query[:, :, group.start : group.stop]
    if not group.is_decode:
        return queries
    return queries[0].transpose(0, 1).reshape(group.rows, kv_heads, -1, queries.shape[3])


def _attend(
    query: Tensor, key: Tensor, value: Tensor, group: Group, scaling: float | None, softcap: float | None
) -> Tensor:
    if softcap is not None:
        return _capped_attention(query, key, value, group, scaling, softcap)
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=group.mask,
        is_causal=group.is_causal,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _capped_attention(
    query: Tensor, key: Tensor, value: Tensor, group: Group, scaling: float | None, softcap: float
) -> Tensor:
    """Attention whose scores pass through `softcap * tanh(score / softcap)` (Gemma 2, arXiv 2408.00118)."""
    rows, kv_heads, _, head_dim = key.shape
    query = query.reshape(rows, kv_heads, -1, query.shape[2], head_dim)  # the third are the heads per kv_head
    key, value = key[:, :, None], value[:, :, None]
    scores = query @ key.transpose(-1, -2) * (head_dim**-0.5 if scaling is None else scaling)
    scores = torch.tanh(scores / softcap) * softcap
    if group.mask is not None:
        scores += group.mask[:, :, None]
    elif group.is_causal:
        scores.masked_fill_(scores.new_ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).flatten(1, 2)


def _by_token(attended: Tensor, group: Group, heads: int) -> Tensor:
    """The output of a group, [tokens, heads, head_dim]."""
    if group.is_decode:
        return attended.reshape(group.rows, heads, -1)
    return attended[0].transpose(0, 1)
