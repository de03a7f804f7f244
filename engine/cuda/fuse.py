"""How does a known model take fewer and larger steps on the device?

For classes whose forward is the plain one of a Llama (`_FAMILIES`), `FusedModel` runs the model's own modules and
weights in another order of calls: one GEMM for q, k and v and one for gate and up, RMSNorm together with the residual
sum before it, SiLU together with its product, rotary embedding together with the write into the pages. A class that is
not in the table, or a model of one that has something else in a place, is `None` to `fuse`, and transformers' forward
serves it. Nothing is believed: `engine.support.verify` compares the result with transformers' own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel
from transformers.models.llama import modeling_llama as llama
from transformers.models.mistral import modeling_mistral as mistral
from transformers.models.qwen2 import modeling_qwen2 as qwen2
from transformers.models.qwen3 import modeling_qwen3 as qwen3

from engine.cuda.attention import PagedStep, Scores, attend
from engine.cuda.kernels import gated, kv_write, rms_norm

_SILU = ("silu", "swish")  # transformers has two names for it


@dataclass(frozen=True, slots=True)
class _Family:
    """The classes of a model's parts, exactly these: a subclass may compute anything."""

    layer: type[nn.Module]
    attention: type[nn.Module]
    mlp: type[nn.Module]
    norm: type[nn.Module]


_FAMILIES: Mapping[type[PreTrainedModel], _Family] = MappingProxyType(
    {
        llama.LlamaForCausalLM: _Family(
            llama.LlamaDecoderLayer, llama.LlamaAttention, llama.LlamaMLP, llama.LlamaRMSNorm
        ),
        mistral.MistralForCausalLM: _Family(
            mistral.MistralDecoderLayer, mistral.MistralAttention, mistral.MistralMLP, mistral.MistralRMSNorm
        ),
        qwen2.Qwen2ForCausalLM: _Family(
            qwen2.Qwen2DecoderLayer, qwen2.Qwen2Attention, qwen2.Qwen2MLP, qwen2.Qwen2RMSNorm
        ),
        qwen3.Qwen3ForCausalLM: _Family(
            qwen3.Qwen3DecoderLayer, qwen3.Qwen3Attention, qwen3.Qwen3MLP, qwen3.Qwen3RMSNorm
        ),
    }
)


class _Joined:
    """Linear layers of one input as one GEMM. Their own weights become views of its weight: the model remains whole,
    and only one layer at a time is in memory twice."""

    def __init__(self, *parts: nn.Linear) -> None:
        self.sizes = [part.out_features for part in parts]
        self._weight = torch.cat([part.weight for part in parts])
        self._bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts])
        for part, weight in zip(parts, torch.split_with_sizes(self._weight, self.sizes), strict=True):
            part.weight = nn.Parameter(weight, requires_grad=False)
        if self._bias is not None:
            for part, bias in zip(parts, torch.split_with_sizes(self._bias, self.sizes), strict=True):
                part.bias = nn.Parameter(bias, requires_grad=False)

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self._weight, self._bias)


class _Norm:
    """An RMSNorm's weight and epsilon."""

    def __init__(self, module: Any) -> None:  # noqa: ANN401  # one of the families' norms
        self._weight: Tensor = module.weight
        self._eps: float = module.variance_epsilon

    def __call__(self, x: Tensor) -> Tensor:
        return rms_norm.rms_norm(x, self._weight, self._eps)

    def after_sum(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of the sum, and the sum."""
        return rms_norm.add_rms_norm(x, residual, self._weight, self._eps)


class _Layer:
    """One decoder layer without its first norm, and with the norm that follows it."""

    def __init__(self, module: Any, following: Any) -> None:  # noqa: ANN401  # a family's layer; a family's norm
        attention, mlp = module.self_attn, module.mlp
        self._index: int = attention.layer_idx
        self._head_dim: int = attention.head_dim
        self._scores = Scores(attention.scaling, None)
        self._qkv = _Joined(attention.q_proj, attention.k_proj, attention.v_proj)
        self._head_norms = [_Norm(norm) for norm in _head_norms(attention)]
        self._o_proj: nn.Linear = attention.o_proj
        self._middle = _Norm(module.post_attention_layernorm)
        self._gate_up = _Joined(mlp.gate_proj, mlp.up_proj)
        self._down_proj: nn.Linear = mlp.down_proj
        self._following = _Norm(following)

    def __call__(
        self, x: Tensor, residual: Tensor, rotary: tuple[Tensor, Tensor], step: PagedStep
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            x: [tokens, hidden], normed.
            residual: [tokens, hidden], the sum that `x` is the norm of.
            rotary: cosines and sines, [tokens, rotary_dim].

        Returns:
            Both for the next layer.
        """
        x, residual = self._middle.after_sum(self._o_proj(self._attention(x, rotary, step)), residual)
        x = self._down_proj(gated.silu_and_mul(self._gate_up(x)))
        return self._following.after_sum(x, residual)

    def _attention(self, x: Tensor, rotary: tuple[Tensor, Tensor], step: PagedStep) -> Tensor:
        parts = torch.split_with_sizes(self._qkv(x), self._qkv.sizes, dim=-1)
        query, key, value = (part.view(part.shape[0], -1, self._head_dim) for part in parts)
        if self._head_norms:
            query, key = (norm(part) for norm, part in zip(self._head_norms, (query, key), strict=True))
        layer = step.layers[self._index]
        kv_write.rotate_and_write(
            query, key, value, *rotary, layer.cache.key_pages, layer.cache.value_pages, step.tables.slots
        )
        return attend(query, key, value, layer, step, self._scores).flatten(1)


class FusedModel:
    """The forward of a model of a known family."""

    def __init__(self, model: Any) -> None:  # noqa: ANN401  # one of the families' models
        decoder = model.model
        layers: Sequence[Any] = decoder.layers
        self._embed: nn.Embedding = decoder.embed_tokens
        self._rotary: nn.Module = decoder.rotary_emb
        self._first = _Norm(layers[0].input_layernorm)
        following = [*(layer.input_layernorm for layer in layers[1:]), decoder.norm]
        self._layers = [_Layer(layer, norm) for layer, norm in zip(layers, following, strict=True)]
        self._head: nn.Linear = model.lm_head

    def __call__(self, step: PagedStep) -> Tensor:
        """One step: [samples, vocab] in the model's dtype, in the order of its `sampled`."""
        residual = self._embed(step.tables.input_ids)
        cos, sin = self._rotary(residual[None], step.tables.positions[None])
        x = self._first(residual)
        for layer in self._layers:
            x, residual = layer(x, residual, (cos[0], sin[0]), step)
        logits: Tensor = self._head(x.index_select(0, step.tables.sampled))
        return logits


@torch.inference_mode(mode=False)
@torch.no_grad()
def fuse(model: PreTrainedModel) -> FusedModel | None:
    """The fused forward of `model`, which stays usable as it is; None: it is not of a known family."""
    family = _FAMILIES.get(type(model))
    if family is None or model.config.hidden_act not in _SILU:
        return None
    whole: Any = model
    return FusedModel(whole) if all(_is_plain(layer, family) for layer in whole.model.layers) else None


def _is_plain(layer: Any, family: _Family) -> bool:  # noqa: ANN401  # to be found out
    """Whether nothing in this layer was replaced, by a quantised part or by somebody's own."""
    attention, mlp = layer.self_attn, layer.mlp
    if (type(layer), type(attention), type(mlp)) != (family.layer, family.attention, family.mlp):
        return False
    norms = [layer.input_layernorm, layer.post_attention_layernorm, *_head_norms(attention)]
    joined = ([attention.q_proj, attention.k_proj, attention.v_proj], [mlp.gate_proj, mlp.up_proj])
    parts = [*joined[0], *joined[1], attention.o_proj, mlp.down_proj]
    return (
        all(type(norm) is family.norm for norm in norms)
        and all(type(part) is nn.Linear for part in parts)
        and all(len({part.bias is None for part in group}) == 1 for group in joined)
    )


def _head_norms(attention: Any) -> list[Any]:  # noqa: ANN401  # a family's attention
    """The norms of query and key heads, which Qwen 3 has."""
    return [attention.q_norm, attention.k_norm] if hasattr(attention, "q_norm") else []
