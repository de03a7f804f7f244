"""Does a model that cannot be loaded say why, and does one that can load as asked?"""

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from engine.config import DtypeName
from engine.loading import LoadError, load, quiet_transformers, read_config
from tests.support import tiny_models

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def llama_bfloat16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_models.CONFIGS["llama_mha"]()  # with tied embeddings
    return tiny_models.save(config, tmp_path_factory.mktemp("llama"), dtype=torch.bfloat16)


def silent(stage: str, fraction: float | None) -> None:
    pass


@pytest.mark.parametrize(
    ("wanted", "got"),
    [("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)],
)
@pytest.mark.parametrize("load_format", ["auto", "dummy"])
def test_dtypes(llama_bfloat16: Path, wanted: DtypeName, got: torch.dtype, load_format: str) -> None:
    model = load(str(llama_bfloat16), wanted, CPU, "dummy" if load_format == "dummy" else "auto", 0, silent)
    assert {parameter.dtype for parameter in model.parameters()} == {got}
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_random_weights_are_drawn_from_the_seed_and_tied_as_the_model_says(llama_bfloat16: Path) -> None:
    one, again, two = (load(str(llama_bfloat16), "float32", CPU, "dummy", seed, silent) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert not torch.equal(one.lm_head.weight, two.lm_head.weight)
    assert one.lm_head.weight is one.model.embed_tokens.weight
    real = load(str(llama_bfloat16), "float32", CPU, "auto", 0, silent)
    for name, buffer in real.named_buffers():  # rotary tables: computed, not drawn
        torch.testing.assert_close(one.get_buffer(name), buffer)


def test_progress_names_what_is_done(llama_bfloat16: Path) -> None:
    stages: list[str] = []
    load(str(llama_bfloat16), "auto", CPU, "auto", 0, lambda stage, _: stages.append(stage))
    assert stages == ["loading weights"]


def test_a_directory_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="without config"):
        read_config(str(tmp_path))


@pytest.mark.parametrize("text", ['{"model_type": "no-such-architecture"}', "{}", "not json"])
def test_a_configuration_that_transformers_does_not_know(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(LoadError, match="no usable model configuration"):
        read_config(str(tmp_path))


def test_a_model_that_does_not_generate(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(LoadError, match="'clip' is not a causal language model"):
        load(str(tmp_path), "auto", CPU, "auto", 0, silent)


def test_missing_weights_are_not_made_up(llama_bfloat16: Path, tmp_path: Path) -> None:
    weights = load_file(llama_bfloat16 / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((llama_bfloat16 / "config.json").read_text())
    with (
        quiet_transformers(),
        pytest.raises(LoadError, match=r"lacks the weights model\.layers\.1\.mlp\.up_proj\.weight"),
    ):
        load(str(tmp_path), "auto", CPU, "auto", 0, silent)


def test_weights_of_another_size_are_not_made_up(llama_bfloat16: Path, tmp_path: Path) -> None:
    save_file(
        load_file(llama_bfloat16 / "model.safetensors"), tmp_path / "model.safetensors", metadata={"format": "pt"}
    )
    config = json.loads((llama_bfloat16 / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    with quiet_transformers(), pytest.raises(LoadError, match="cannot load"):
        load(str(tmp_path), "auto", CPU, "auto", 0, silent)


def test_only_safetensors(llama_bfloat16: Path, tmp_path: Path) -> None:
    torch.save(load_file(llama_bfloat16 / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((llama_bfloat16 / "config.json").read_text())
    with pytest.raises(LoadError, match="safetensors"):
        load(str(tmp_path), "auto", CPU, "auto", 0, silent)


def test_transformers_is_quiet_only_as_long_as_asked() -> None:
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    with quiet_transformers():
        assert transformers_logging.get_verbosity() == logging.ERROR
        assert not transformers_logging.is_progress_bar_enabled()
    assert transformers_logging.get_verbosity() == verbosity
    assert transformers_logging.is_progress_bar_enabled() == bars
