"""How does a Llama GGUF file become a Hugging Face model directory?

Called by `launch.pull`, once per model and machine: reading a GGUF at every start would cost many seconds, and
transformers may keep its weights packed, which is slow to compute with. A file that says anything this conversion does
not know about is refused, because weights that are understood wrongly still generate text.
"""

import json
import os
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from gguf import GGUFReader
from msgspec import Struct, field

from launch.errors import ModelUnavailable
from launch.gguf_tokenizer import build_tokenizer
from launch.gguf_weights import is_tied, tensor_names, write_weights
from launch.progress import OnProgress, Stage


class Metadata(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a GGUF file has to say of its model, under the names of the GGUF specification (ggml, docs/gguf.md)."""

    architecture: Literal["llama"] = field(name="general.architecture")
    layers: int = field(name="llama.block_count")
    context_length: int = field(name="llama.context_length")
    hidden_size: int = field(name="llama.embedding_length")
    intermediate_size: int = field(name="llama.feed_forward_length")
    heads: int = field(name="llama.attention.head_count")
    kv_heads: int = field(name="llama.attention.head_count_kv")
    rms_norm_epsilon: float = field(name="llama.attention.layer_norm_rms_epsilon")
    rope_theta: float = field(name="llama.rope.freq_base")
    rotary_dim: int = field(name="llama.rope.dimension_count")
    vocab_size: int = field(name="llama.vocab_size")
    tokenizer_model: Literal["gpt2"] = field(name="tokenizer.ggml.model")
    pre_tokenizer: Literal["smollm"] = field(name="tokenizer.ggml.pre")
    tokens: tuple[str, ...] = field(name="tokenizer.ggml.tokens")
    token_types: tuple[int, ...] = field(name="tokenizer.ggml.token_type")
    merges: tuple[str, ...] = field(name="tokenizer.ggml.merges")
    bos_token_id: int = field(name="tokenizer.ggml.bos_token_id")
    eos_token_id: int = field(name="tokenizer.ggml.eos_token_id")
    unknown_token_id: int = field(name="tokenizer.ggml.unknown_token_id")
    padding_token_id: int = field(name="tokenizer.ggml.padding_token_id")
    add_space_prefix: bool = field(name="tokenizer.ggml.add_space_prefix", default=False)
    add_bos_token: bool = field(name="tokenizer.ggml.add_bos_token", default=False)
    chat_template: str = field(name="tokenizer.chat_template")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.heads


def convert(source: Path, target: Path, on_progress: OnProgress) -> None:
    """Write the model of the GGUF file `source` into the new directory `target`, and make it durable.

    Files: `model.safetensors` (bfloat16), `config.json`, `generation_config.json`, `tokenizer.json`,
    `tokenizer_config.json` (with the chat template).

    Raises:
        ModelUnavailable: the file is not a Llama model in a form that this conversion knows.
    """
    on_progress(Stage.CONVERTING, 0, None)  # reading the vocabulary alone takes seconds
    reader = GGUFReader(source)
    metadata = _metadata(reader)
    tied = is_tied(reader.tensors)
    names = tensor_names(metadata.layers, tied=tied)
    tokenizer = build_tokenizer(metadata.tokens, metadata.token_types, metadata.merges)
    target.mkdir()
    write_weights(reader.tensors, target / "model.safetensors", (metadata.heads, metadata.kv_heads), names, on_progress)
    _write_text(target / "config.json", _json(_config(metadata, tied=tied)))
    _write_text(target / "generation_config.json", _json(_special_ids(metadata)))
    _write_text(target / "tokenizer.json", tokenizer.to_str(pretty=False))
    _write_text(target / "tokenizer_config.json", _json(_tokenizer_config(metadata)))
    sync_directory(target)


def sync_directory(directory: Path) -> None:
    """Make the names in `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _metadata(reader: GGUFReader) -> Metadata:
    """What `reader` says of the mathematics and the tokenizer; names, authors and licences do not matter here."""
    said = {
        name: entry.contents()
        for name, entry in reader.fields.items()
        if name == "general.architecture" or name.startswith(("llama.", "tokenizer."))
    }
    try:
        metadata = msgspec.convert(said, Metadata)
    except msgspec.ValidationError as error:
        raise ModelUnavailable(f"this GGUF file is not one that can be converted: {error}") from error
    if metadata.add_bos_token or metadata.add_space_prefix:
        raise ModelUnavailable("this GGUF file's tokenizer adds a token or a space, which cannot be converted")
    if metadata.rotary_dim != metadata.head_dim or metadata.vocab_size != len(metadata.tokens):
        raise ModelUnavailable("this GGUF file's sizes do not fit each other")
    return metadata


def _config(metadata: Metadata, *, tied: bool) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": metadata.hidden_size,
        "intermediate_size": metadata.intermediate_size,
        "num_hidden_layers": metadata.layers,
        "num_attention_heads": metadata.heads,
        "num_key_value_heads": metadata.kv_heads,
        "head_dim": metadata.head_dim,
        "max_position_embeddings": metadata.context_length,
        "rms_norm_eps": _shortest(metadata.rms_norm_epsilon),
        "rope_parameters": {"rope_type": "default", "rope_theta": _shortest(metadata.rope_theta)},
        "vocab_size": metadata.vocab_size,
        "tie_word_embeddings": tied,
        "attention_bias": False,
        "mlp_bias": False,
        "dtype": "bfloat16",
        **_special_ids(metadata),
    }


def _special_ids(metadata: Metadata) -> dict[str, object]:
    return {
        "bos_token_id": metadata.bos_token_id,
        "eos_token_id": metadata.eos_token_id,
        "pad_token_id": metadata.padding_token_id,
    }


def _tokenizer_config(metadata: Metadata) -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": metadata.tokens[metadata.bos_token_id],
        "eos_token": metadata.tokens[metadata.eos_token_id],
        "pad_token": metadata.tokens[metadata.padding_token_id],
        "unk_token": metadata.tokens[metadata.unknown_token_id],
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata.context_length,
        "chat_template": metadata.chat_template,
    }


def _shortest(value: float) -> float:
    """The shortest decimal that GGUF's float32 stands for: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _json(value: dict[str, object]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
