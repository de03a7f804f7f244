"""Does a converted model hold the weights, settings and tokenizer of its GGUF file, and is every other file refused?"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from launch.errors import ModelUnavailable
from launch.gguf_convert import convert
from launch.gguf_tokenizer import build_tokenizer
from launch.gguf_weights import to_bfloat16
from launch.progress import Stage, silent
from tests.support.tiny_gguf import CHAT_TEMPLATE, MERGES, SPECIAL, TOKENS, TinyGguf, write_tiny_gguf


def _convert(tmp_path: Path, **options: Any) -> tuple[TinyGguf, Path]:
    gguf = write_tiny_gguf(tmp_path / "tiny.gguf", **options)
    convert(gguf.path, tmp_path / "out", silent)
    return gguf, tmp_path / "out"


@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_the_dequantised_ones_in_bfloat16(tmp_path: Path, tied: bool) -> None:
    gguf, out = _convert(tmp_path, tied=tied)
    written = load_file(out / "model.safetensors")
    assert written.keys() == gguf.expected.keys()
    assert ("lm_head.weight" in written) == (not tied)
    for name, values in gguf.expected.items():
        assert torch.equal(written[name], torch.from_numpy(values).to(torch.bfloat16)), name


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_finds_every_weight_that_it_looks_for(tmp_path: Path, tied: bool) -> None:
    _, out = _convert(tmp_path, tied=tied)
    loaded: Any = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    model, report = loaded
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    assert torch.isfinite(model(torch.tensor([[5, 6, 7]])).logits).all()


def test_settings_come_from_the_file(tmp_path: Path) -> None:
    _, out = _convert(tmp_path)
    config = json.loads((out / "config.json").read_text())
    assert config["rms_norm_eps"] == 1e-5
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 100_000.0}
    assert config["tie_word_embeddings"] is True
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 2)
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == 2


def test_tokenizer_loads_with_its_special_tokens_and_chat_template(tmp_path: Path) -> None:
    _, out = _convert(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (SPECIAL[1], SPECIAL[2], SPECIAL[2])
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert tokenizer("<|im_start|>the<|im_end|>")["input_ids"] == [1, TOKENS.index("t"), TOKENS.index("he"), 2]
    assert tokenizer.decode([1, TOKENS.index("he"), 2], skip_special_tokens=True) == "he"


def test_progress_reaches_the_bytes_of_all_weights(tmp_path: Path) -> None:
    gguf = write_tiny_gguf(tmp_path / "tiny.gguf")
    steps: list[tuple[Stage, int, int | None]] = []
    convert(gguf.path, tmp_path / "out", lambda *step: steps.append(step))
    total = sum(2 * values.size for values in gguf.expected.values())
    assert steps[-1] == (Stage.CONVERTING, total, total)
    assert [done for _, done, _ in steps] == sorted(done for _, done, _ in steps)
    assert len(steps) > len(gguf.expected)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"architecture": "qwen2"}, "qwen2"),
        ({"pre_tokenizer": "llama-bpe"}, "llama-bpe"),
        ({"extra_metadata": {"llama.rope.scaling.type": "yarn"}}, "rope.scaling"),
        ({"extra_tensors": ("blk.0.attn_q.bias",)}, "blk.0.attn_q.bias"),
        ({"without": "blk.1.ffn_up.weight"}, "blk.1.ffn_up.weight"),
    ],
)
def test_what_is_not_understood_is_refused(tmp_path: Path, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ModelUnavailable, match=complaint):
        _convert(tmp_path, **options)


def test_bfloat16_rounds_as_torch_does() -> None:
    bits = np.random.default_rng(3).integers(0, 1 << 32, 200_000, dtype=np.uint32)
    ties = bits & np.uint32(0xFFFF_0000) | np.uint32(0x8000)
    edges = np.array([0, 0x8000_0000, 0x7F7F_FFFF, 0x7F80_0000, 0xFF80_0000, 0x7FFF_FFFF, 1, 0x8001], dtype=np.uint32)
    values = np.concatenate([bits, ties, edges]).view(np.float32)
    ours = torch.from_numpy(to_bfloat16(values).view(np.int16)).view(torch.bfloat16)
    theirs = torch.from_numpy(values).to(torch.bfloat16)
    assert torch.equal(ours.isnan(), theirs.isnan())
    finite = ~theirs.isnan()
    assert torch.equal(ours.view(torch.int16)[finite], theirs.view(torch.int16)[finite])


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return build_tokenizer(TOKENS, [3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)), MERGES)


def test_digits_are_never_merged(tokenizer: Tokenizer) -> None:
    """The vocabulary has `12` and its merge, so only the pre-tokenizer keeps the digits apart."""
    assert tokenizer.encode("12 12").tokens == ["1", "2", "Ġ", "1", "2"]
    assert tokenizer.encode("the the").tokens == ["t", "he", "Ġt", "he"]


def test_control_tokens_are_special(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<|endoftext|>the").ids
    assert ids[0] == 0
    assert tokenizer.decode(ids) == "the"


@given(st.text(max_size=40))
def test_text_survives_a_round_trip(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
