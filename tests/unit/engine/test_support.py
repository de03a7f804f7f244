"""Is a model that paged attention would get wrong refused, with the reason?"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    DeepseekV2Config,
    DeepseekV3Config,
    FalconConfig,
    Gemma3nTextConfig,
    Gemma3TextConfig,
    GptOssConfig,
    Lfm2Config,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen3NextConfig,
    T5Config,
)

from engine import attention, support
from engine.config import DtypeName, EngineConfig
from engine.core import open_engine
from engine.loading import LoadError, load, quiet_transformers
from engine.pool import LayerCache
from engine.support import UnsupportedModel
from tests.support import tiny_models

SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MLA: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": None,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "head_dim": 8,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
}
LONGROPE: dict[str, Any] = {
    "original_max_position_embeddings": 64,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 64,
        "factor": 4.0,
    },
}


def open_dummy(config: PreTrainedConfig, directory: Path, max_model_len: int | None = None) -> None:
    with quiet_transformers():
        config.save_pretrained(directory)
    cfg = EngineConfig(model=str(directory), load_format="dummy", pool_pages=8, max_model_len=max_model_len)
    open_engine(cfg, lambda *_: None)


REFUSED: dict[str, tuple[Callable[[], PreTrainedConfig], str]] = {
    "state space": (lambda: MambaConfig(vocab_size=128, hidden_size=32, num_hidden_layers=2), "recurrent state"),
    "linear attention": (lambda: Qwen3NextConfig(**SIZES), "recurrent state"),
    "short convolutions": (
        lambda: Lfm2Config(**SIZES, layer_types=["conv", "full_attention"]),
        "layer 0 keeps a LinearAttentionLayer",
    ),
    "latent attention, DeepSeek V2": (lambda: DeepseekV2Config(**{**SIZES, **MLA, "v_head_dim": 12}), "layer 0"),
    "latent attention, DeepSeek V3": (lambda: DeepseekV3Config(**{**SIZES, **MLA, "v_head_dim": 12}), "layer 0"),
    "latents that look like keys": (
        lambda: DeepseekV3Config(**{**SIZES, **MLA, "v_head_dim": 16, "kv_lora_rank": 8}),
        "its cache keeps|differ in size",
    ),
    "shared keys": (
        lambda: Gemma3nTextConfig(
            **{**SIZES, "num_hidden_layers": 4, "num_kv_shared_layers": 2},
            layer_types=["sliding_attention", "full_attention"] * 2,
        ),
        "keys and values of (its|their) own",
    ),
    "chunked attention": (lambda: Llama4TextConfig(**SIZES, attention_chunk_size=16), "chunked attention"),
    "attention sinks": (
        lambda: GptOssConfig(**SIZES, head_dim=8, num_local_experts=2, num_experts_per_tok=1, sliding_window=8),
        "s_aux",
    ),
    "ALiBi": (
        lambda: FalconConfig(vocab_size=128, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True),
        "no pluggable attention",
    ),
    "bidirectional": (lambda: Gemma3TextConfig(**SIZES, head_dim=8, use_bidirectional_attention=True), "not causal"),
    "an encoder": (lambda: BertConfig(**{**SIZES, "num_key_value_heads": None}), "not causal"),
    "rotary tables of the longest": (lambda: Phi3Config(**SIZES, **LONGROPE), "max_model_len <= 64"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused(name: str, tmp_path: Path) -> None:
    config, reason = REFUSED[name]
    with pytest.raises(UnsupportedModel, match=reason):
        open_dummy(config(), tmp_path)


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="'t5' is not a causal language model"):
        open_dummy(T5Config(), tmp_path)


def test_longrope_is_served_up_to_where_its_tables_change(tmp_path: Path) -> None:
    open_dummy(Phi3Config(**SIZES, **LONGROPE), tmp_path, max_model_len=64)


def test_dynamic_rotary_tables_are_constant_within_the_context(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    open_dummy(LlamaConfig(**SIZES, rope_parameters=rope), tmp_path, max_model_len=10_000)


def open_llama(directory: Path) -> None:
    tiny_models.save(tiny_models.CONFIGS["llama"](), directory)
    open_engine(EngineConfig(model=str(directory), pool_pages=8), lambda *_: None)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_paged_forward_that_differs_is_refused(
    dtype: DtypeName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last defence, against what no configuration says: here, values that are written to the next slot."""

    def misplaced(cache: LayerCache, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        right(cache, slots, key, value.roll(1, dims=2))

    right = attention._write
    tiny_models.save(tiny_models.CONFIGS["llama"](), tmp_path)
    cfg = EngineConfig(model=str(tmp_path), pool_pages=8, dtype=dtype)
    open_engine(cfg, lambda *_: None)
    monkeypatch.setattr(attention, "_write", misplaced)
    with pytest.raises(UnsupportedModel, match="differs from the model's own by"):
        open_engine(cfg, lambda *_: None)


def test_a_small_difference_is_refused_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def imprecise(*args: Any) -> torch.Tensor:
        return right(*args) * (1 + 1e-3)

    right = attention._attend
    monkeypatch.setattr(attention, "_attend", imprecise)
    with pytest.raises(UnsupportedModel, match=r"rounding explains 0\.0001"):
        open_llama(tmp_path)


def test_logits_that_are_not_a_number_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_attend", lambda query, *_: torch.full_like(query, torch.nan))
    with pytest.raises(UnsupportedModel, match="by nan"):
        open_llama(tmp_path)


def test_weights_in_a_dtype_that_nothing_was_measured_for_are_refused(tmp_path: Path) -> None:
    directory = tiny_models.save(tiny_models.CONFIGS["llama"](), tmp_path)
    model: Any = load(str(directory), "float32", torch.device("cpu"), "auto", 0, lambda *_: None)
    with pytest.raises(UnsupportedModel, match=r"torch\.float64"):
        support.probe(model.to(torch.float64))


def test_windows_are_those_of_the_models_own_cache() -> None:
    config = tiny_models.CONFIGS["gemma3"]()
    assert support._windows(config) == (tiny_models.WINDOW, None, tiny_models.WINDOW)
