"""How do the tensors of a Llama GGUF file become a safetensors file?

Called by `launch.gguf_convert`. Quantised tensors are dequantised by gguf's numpy code and rounded to bfloat16. The
safetensors file is written here, one tensor at a time, because `safetensors.serialize_file` wants all of them in memory
and takes other arguments in 0.8 than before. Format: header length (8 bytes, little-endian), JSON header padded to a
multiple of 8 bytes, tensor bytes without gaps.
"""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from gguf import ReaderTensor
from gguf.quants import dequantize
from numpy.typing import NDArray

from launch.errors import ModelUnavailable
from launch.progress import OnProgress, Stage

_BFLOAT16_BYTES = 2
_LAYER_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def is_tied(tensors: Sequence[ReaderTensor]) -> bool:
    """Whether the output projection is the embedding: such a file has no tensor for it."""
    return all(tensor.name != "output.weight" for tensor in tensors)


def tensor_names(layers: int, *, tied: bool) -> dict[str, str]:
    """GGUF name -> Hugging Face name, for every weight of a Llama model without biases."""
    names = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    if not tied:
        names["output.weight"] = "lm_head.weight"
    for layer in range(layers):
        for gguf_part, hf_part in _LAYER_PARTS.items():
            names[f"blk.{layer}.{gguf_part}.weight"] = f"model.layers.{layer}.{hf_part}.weight"
    return names


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of `values` rounded to bfloat16: to nearest, ties to even; a NaN stays a NaN."""
    bits = values.view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    rounded[np.isnan(values)] = 0x7FC0  # the addition above may have carried a NaN into another number
    return rounded


def halves_from_pairs(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Reorder the rows of a query or key projection, [heads * head_dim, hidden], as Hugging Face wants them.

    Rotary embedding turns the components of a head in pairs. llama.cpp stores the two of a pair next to each other,
    transformers stores all first components and then all second ones.
    """
    rows, hidden = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, hidden)
    return pairs.swapaxes(1, 2).reshape(rows, hidden)


def write_weights(
    tensors: Sequence[ReaderTensor],
    target: Path,
    heads: tuple[int, int],
    names: dict[str, str],
    on_progress: OnProgress,
) -> None:
    """Write `tensors` to the safetensors file `target` in bfloat16 and make it durable.

    Args:
        heads: number of query heads and of key-value heads.
        names: GGUF name -> name in `target`, for exactly these tensors.

    Raises:
        ModelUnavailable: `tensors` are not those in `names`, or one of them has a quantisation unknown to gguf.
    """
    odd = {tensor.name for tensor in tensors} ^ names.keys()
    if odd:
        raise ModelUnavailable(f"the GGUF file lacks, or should not have, these tensors: {', '.join(sorted(odd)[:5])}")
    header, total = _header(tensors, names)
    done = 0
    with target.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for tensor in tensors:
            on_progress(Stage.CONVERTING, done, total)
            done += file.write(to_bfloat16(_hf_values(tensor, heads)).astype("<u2", copy=False).tobytes())
        file.flush()
        os.fsync(file.fileno())
    on_progress(Stage.CONVERTING, done, total)


def _header(tensors: Sequence[ReaderTensor], names: dict[str, str]) -> tuple[bytes, int]:
    """The padded header of the file, and how many bytes of tensors follow it."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        shape = _shape(tensor)
        start, end = end, end + math.prod(shape) * _BFLOAT16_BYTES
        entries[names[tensor.name]] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    return header + b" " * (-len(header) % 8), end


def _shape(tensor: ReaderTensor) -> list[int]:
    return [int(n) for n in reversed(tensor.shape)]  # GGUF lists the fastest dimension first


def _hf_values(tensor: ReaderTensor, heads: tuple[int, int]) -> NDArray[np.float32]:
    try:
        values = dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        raise ModelUnavailable(f"cannot dequantise {tensor.name} from {tensor.tensor_type.name}") from error
    weight = np.ascontiguousarray(values, dtype=np.float32).reshape(_shape(tensor))
    if tensor.name.endswith(".attn_q.weight"):
        return halves_from_pairs(weight, heads[0])
    if tensor.name.endswith(".attn_k.weight"):
        return halves_from_pairs(weight, heads[1])
    return weight
