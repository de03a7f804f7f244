"""Which models do the tests run?

Small random ones, of architectures that stress a different part of paged attention each. `save` writes one as a
Hugging Face directory; nothing is downloaded.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from engine.loading import quiet_transformers

VOCAB_SIZE = 256
WINDOW = 11
"""Of the models with a sliding window; shorter than the prompts of the tests, and no multiple of a page."""

_COMMON: Mapping[str, Any] = MappingProxyType(
    {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
)


def _gemma(**more: Any) -> dict[str, Any]:
    layer_types = ["sliding_attention", "full_attention", "sliding_attention"]
    return {
        **_COMMON,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "sliding_window": WINDOW,
        "layer_types": layer_types,
        "initializer_range": 0.15,
        **more,
    }


CONFIGS: Mapping[str, Callable[[], PreTrainedConfig]] = MappingProxyType(
    {
        "llama": lambda: LlamaConfig(**_COMMON, num_key_value_heads=2),
        "llama_mha": lambda: LlamaConfig(**_COMMON, num_key_value_heads=6, tie_word_embeddings=True),
        "llama_mqa": lambda: LlamaConfig(**_COMMON, num_key_value_heads=1),
        "mistral_window": lambda: MistralConfig(**_COMMON, num_key_value_heads=2, sliding_window=WINDOW),
        "qwen2_bias": lambda: Qwen2Config(**_COMMON, num_key_value_heads=2),
        "qwen3_qk_norm": lambda: Qwen3Config(**_COMMON, num_key_value_heads=2, head_dim=16),
        "gemma2_softcap": lambda: Gemma2Config(**_gemma(attn_logit_softcapping=2.0, query_pre_attn_scalar=8)),
        "gemma3": lambda: Gemma3TextConfig(**_gemma(query_pre_attn_scalar=8)),
        "qwen3_moe": lambda: Qwen3MoeConfig(
            **_COMMON,
            num_key_value_heads=2,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
        ),
        "gpt_neox": lambda: GPTNeoXConfig(**_COMMON),
        "gpt2_learned_positions": lambda: GPT2Config(
            vocab_size=VOCAB_SIZE,
            n_embd=48,
            n_layer=3,
            n_head=6,
            n_positions=512,
            initializer_range=0.3,
            bos_token_id=1,
            eos_token_id=2,
        ),
        "phi3_fused_qkv": lambda: Phi3Config(**_COMMON, num_key_value_heads=2),
    }
)
"""By the name that the tests show."""


def save(config: PreTrainedConfig, directory: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Write a model with random weights drawn from `seed`; returns `directory`."""
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        auto: Any = AutoModelForCausalLM  # its methods are not annotated
        model = auto.from_config(config, dtype=dtype)
        model.save_pretrained(directory)
    return directory
