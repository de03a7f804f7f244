"""Which models does the check run?

Llama's architecture with random weights: one of the size that the numbers are about, and one that a CPU computes in no
time, to try the check itself. A directory with a configuration and a tokenizer is all that `load_format="dummy"` needs.
"""

from pathlib import Path

import msgspec
from msgspec import Struct
from tokenizers import Tokenizer, decoders, models, pre_tokenizers


class Shape(Struct, frozen=True, kw_only=True):
    """Of a Llama; `ffn` is the width of gate and up."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    context: int
    dtype: str  # of weights and KV
    dtype_bytes: int

    @property
    def kv_token_bytes(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype_bytes


LLAMA_8B = Shape(
    name="llama-8b",
    hidden=4096,
    layers=32,
    heads=32,
    kv_heads=8,
    head_dim=128,
    ffn=14336,
    vocab=128_256,
    context=16_384,
    dtype="bfloat16",
    dtype_bytes=2,
)
TINY = Shape(
    name="llama-tiny",
    hidden=64,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=16,
    ffn=128,
    vocab=512,
    context=1024,
    dtype="float32",
    dtype_bytes=4,
)


def configuration(shape: Shape) -> dict[str, object]:
    """`config.json`, as transformers reads it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
        "tie_word_embeddings": False,
        "dtype": shape.dtype,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def write(shape: Shape, directory: Path) -> Path:
    """A model directory without weights; returns it."""
    model = directory / shape.name
    model.mkdir()
    (model / "config.json").write_bytes(msgspec.json.encode(configuration(shape)))
    _tokenizer(shape.vocab).save(str(model / "tokenizer.json"))
    return model


def _tokenizer(vocab: int) -> Tokenizer:
    """Every byte is a token, and every other id has a text of its own: whatever is sampled can be shown."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f"w{number}" for number in range(len(alphabet), vocab))]
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens[:vocab])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
