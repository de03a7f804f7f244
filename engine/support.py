"""Can the engine serve this model exactly?

Three lines of defence, each with its reason in plain words. `refuse_architecture` reads the configuration, before any
weights are loaded. `probe` runs the model once as it is and looks at what its own cache holds. `verify` compares the
forward that will serve with the model's own. What passes all three is served; nothing is served on the strength of its
name. Called by `engine.core.open_engine`, inside its inference mode.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from engine import attention
from engine.batch import Window
from engine.forward import ForwardFactory, ModelForward
from engine.layout import KvLayout
from engine.pool import KvPool
from engine.port import Row, SampleSpec
from runtime.params import SamplingParams

_TOLERANCE: Mapping[torch.dtype, float] = {torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.15}
"""How far apart two exact forwards may be: the norm of the difference of the logits over the norm of their spread.

Measured on 68 architectures with random weights and four layers: at most 1e-6, 5e-3 and 0.03 (an exotic router 0.13);
what was not the same computation: 0.2 to 1.1.
"""

# The trial: a prompt in two chunks, a short one beside the second chunk, then both decode together.
_LONG, _SHORT, _CHUNK, _DECODES = 27, 5, 11, 3


class UnsupportedModel(Exception):
    """The engine would not compute this model exactly."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"unsupported model: {reason}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Geometry:
    """What the cache of a model looks like; `windows` has one entry per layer."""

    kv_heads: int
    head_dim: int
    windows: tuple[Window, ...]


def refuse_architecture(config: PreTrainedConfig, model_class: type[PreTrainedModel]) -> None:
    """
    Raises:
        UnsupportedModel: what the configuration describes is not causal attention over keys and values that pages hold.
    """
    text = config.get_text_config(decoder=True)
    if config.is_encoder_decoder:
        raise UnsupportedModel("an encoder-decoder model; only decoder-only models have a prefill to hand off")
    if getattr(model_class, "_is_stateful", False):
        raise UnsupportedModel("it keeps a recurrent state (linear attention, state space), not only keys and values")
    if not getattr(model_class, "_supports_attention_backend", False):
        raise UnsupportedModel(f"transformers gives {model_class.__name__} no pluggable attention")
    if getattr(text, "is_causal", True) is False or getattr(text, "use_bidirectional_attention", None):
        raise UnsupportedModel("its attention is not causal")
    if "chunked_attention" in (getattr(text, "layer_types", None) or ()) or getattr(text, "attention_chunk_size", None):
        raise UnsupportedModel("chunked attention")
    _windows(config)


def max_model_len(config: PreTrainedConfig, wanted: int | None) -> int:
    """The model's context, or `wanted` tokens if that is less.

    Raises:
        UnsupportedModel: there is no bound, or a request of that length would change the numbers of others.
    """
    text = config.get_text_config(decoder=True)
    bounds = [bound for bound in (getattr(text, "max_position_embeddings", None), wanted) if bound is not None]
    if not bounds:
        raise UnsupportedModel("its configuration names no context length; give max_model_len")
    limit = _rotary_limit(text)
    if limit is not None and min(bounds) > limit:
        raise UnsupportedModel(
            f"beyond {limit} tokens its rotary tables depend on the longest sequence of a batch, so one request would "
            f"change another; serve it with max_model_len <= {limit}"
        )
    return min(bounds)


def probe(model: PreTrainedModel) -> Geometry:
    """
    Raises:
        UnsupportedModel: a layer keeps something else than keys and values of one common shape.
    """
    if model.dtype not in _TOLERANCE:
        raise UnsupportedModel(f"its weights are {model.dtype}; give a dtype")
    cache = DynamicCache(config=model.config)
    model.set_attn_implementation("eager")
    model(input_ids=_trial_tokens(model, _SHORT)[None], past_key_values=cache, use_cache=True)
    shapes = set()
    for i, layer in enumerate(cache.layers):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or values is None:
            raise UnsupportedModel(f"layer {i} keeps no keys and values of its own")
        if keys.shape != values.shape:
            sizes = f"{keys.shape[-1]} and {values.shape[-1]}"
            raise UnsupportedModel(f"a key and a value of layer {i} differ in size, {sizes}")
        shapes.add((keys.shape[1], keys.shape[3]))
    if len(shapes) != 1:
        raise UnsupportedModel(f"layers differ in (kv_heads, head_dim): {sorted(shapes)}")
    ((kv_heads, head_dim),) = shapes
    return Geometry(kv_heads, head_dim, _windows(model.config))


def verify(model: PreTrainedModel, layout: KvLayout, make_forward: ForwardFactory) -> None:
    """Compare a short trial of a paged forward with the model's own.

    Args:
        make_forward: given a pool of `layout`, the forward of `model` that will serve.

    Raises:
        UnsupportedModel: the logits are not the same within what rounding explains.
    """
    long, short = _trial_tokens(model, _LONG + _DECODES), _trial_tokens(model, _SHORT + _DECODES)
    model.set_attn_implementation("eager")
    own_long, own_short = (model(input_ids=tokens[None]).logits[0] for tokens in (long, short))
    expected = [logits for k in range(-1, _DECODES) for logits in (own_long[_LONG + k], own_short[_SHORT + k])]
    pool = KvPool(layout, 2 * layout.pages_for(len(long)), model.device)
    try:
        paged = _paged_trial(make_forward(pool), pool.total_pages, long.tolist(), short.tolist())
    except attention.UnsupportedAttention as error:
        raise UnsupportedModel(str(error)) from error
    difference = _relative_difference(paged, torch.stack(expected))
    tolerance = _TOLERANCE[model.dtype]
    if not difference <= tolerance:
        raise UnsupportedModel(
            f"the paged forward differs from the model's own by {difference:.2g}, rounding explains {tolerance:.2g}"
        )


def _paged_trial(forward: ModelForward, pages: int, long: list[int], short: list[int]) -> Tensor:
    """Logits after the prompts and after each decoded token, long and short in turn; on scattered pages."""
    long_pages, short_pages = range(pages - 1, 0, -2), range(0, pages, 2)
    spec = SampleSpec(SamplingParams(), 0, (), ())
    steps = [[Row(long[:_CHUNK], 0, long_pages, None)]]
    steps.append([Row(long[_CHUNK:_LONG], _CHUNK, long_pages, spec), Row(short[:_SHORT], 0, short_pages, spec)])
    for k in range(_DECODES):
        long_at, short_at = _LONG + k, _SHORT + k
        steps.append(
            [Row([long[long_at]], long_at, long_pages, spec), Row([short[short_at]], short_at, short_pages, spec)]
        )
    return torch.cat([forward.logits(step).clone() for step in steps])


def _relative_difference(paged: Tensor, own: Tensor) -> float:
    """The upper median over the rows: in 16 bits a router of experts may tip over on a row or two, while a mistake in
    chunking, mixing or decoding shows on half of them at least."""
    if paged.shape != own.shape:
        raise UnsupportedModel(f"it answers {tuple(own.shape)} wanted logits with {tuple(paged.shape)}")
    own, paged = own.float(), paged.float()
    spread = (own - own.mean(dim=-1, keepdim=True)).norm(dim=-1)
    differences = (paged - own).norm(dim=-1) / spread
    return float(differences.sort().values[len(differences) // 2])


def _trial_tokens(model: PreTrainedModel, count: int) -> Tensor:
    vocab_size = model.config.get_text_config(decoder=True).vocab_size
    generator = torch.Generator().manual_seed(count)
    return torch.randint(vocab_size, (count,), generator=generator).to(model.device)


def _windows(config: PreTrainedConfig) -> tuple[Window, ...]:
    """Each layer's window, as the model's own cache has it.

    Raises:
        UnsupportedModel: a layer caches something else than keys and values.
    """
    windows: list[Window] = []
    cached = DynamicCache(config=config).layers
    layers = config.get_text_config(decoder=True).num_hidden_layers
    if len(cached) != layers:
        raise UnsupportedModel(f"only {len(cached)} of {layers} layers keep keys and values of their own")
    for i, layer in enumerate(cached):
        if type(layer) is DynamicSlidingWindowLayer:
            windows.append(layer.sliding_window)
        elif type(layer) is DynamicLayer:
            windows.append(None)
        else:
            raise UnsupportedModel(f"layer {i} keeps a {type(layer).__name__}, not keys and values of its own")
    return tuple(windows)


def _rotary_limit(text: PreTrainedConfig) -> int | None:
    """Up to how many tokens the rotary tables are constant; None: always."""
    parameters = getattr(text, "rope_parameters", None) or {}
    per_layer_type = [value for value in parameters.values() if isinstance(value, dict)] or [parameters]
    limits = []
    for rope in per_layer_type:
        rope_type = rope.get("rope_type", "default")
        if rope_type == "longrope":
            limits.append(rope["original_max_position_embeddings"])
        elif "dynamic" in rope_type:
            limits.append(text.max_position_embeddings)
    return min(limits, default=None)
