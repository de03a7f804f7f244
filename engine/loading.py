"""How does a model get into memory?

Any causal language model that transformers knows, from a local directory or the hub, safetensors only and without code
of the checkpoint's own. Called by `engine.core.open_engine` and by the benchmarks that want the model alone.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.utils import logging as transformers_logging

from engine.config import DtypeName, LoadFormat

Progress = Callable[[str, float | None], None]
"""Called with what is being done and, where it is known, how much of it: 0 to 1."""

_DUMMY_STD = 0.02


class LoadError(Exception):
    """A model cannot be loaded; the text says what to change."""


def load(
    model: str,
    dtype: DtypeName,
    device: torch.device,
    load_format: LoadFormat,
    seed: int,
    on_progress: Progress,
) -> PreTrainedModel:
    """A model in evaluation mode, with the attention that transformers chose.

    Raises:
        LoadError: not a model, not a causal language model, weights missing, or not safetensors.
    """
    config = read_config(model)
    wanted = _dtype(dtype, device)
    if load_format == "dummy":
        on_progress("drawing random weights", None)
        loaded = _dummy(config, wanted or config.dtype or torch.float32, device, seed)
    else:
        on_progress("loading weights", None)
        loaded = _pretrained(model, config, wanted or "auto").to(device)
    return loaded.eval().requires_grad_(False)


def read_config(model: str) -> PreTrainedConfig:
    """
    Raises:
        LoadError: no such model, or one that transformers does not know.
    """
    path = Path(model)
    if path.is_dir() and not (path / "config.json").is_file():
        raise LoadError(f"{model} is a directory without config.json: not a Hugging Face model")
    try:
        return AutoConfig.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise LoadError(f"no usable model configuration at {model}: {error}") from error


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """
    Raises:
        LoadError: transformers has no causal language model of this architecture.
    """
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise LoadError(f"{config.model_type!r} is not a causal language model in transformers")
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Only errors from transformers' own logger, and no progress bars, for as long as this lasts."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _dtype(name: DtypeName, device: torch.device) -> torch.dtype | None:
    """None: the checkpoint's own."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else None
    return getattr(torch, name)


def _pretrained(model: str, config: PreTrainedConfig, dtype: torch.dtype | str) -> PreTrainedModel:
    model_class(config)
    try:
        loaded, report = AutoModelForCausalLM.from_pretrained(
            model, config=config, dtype=dtype, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise LoadError(f"cannot load {model}: {error}") from error
    if missing := sorted(report["missing_keys"]):  # transformers would go on with random values in their place
        raise LoadError(f"{model} lacks the weights {', '.join(missing[:5])}{' and others' * (len(missing) > 5)}")
    return loaded


def _dummy(config: PreTrainedConfig, dtype: torch.dtype, device: torch.device, seed: int) -> PreTrainedModel:
    """The architecture with seeded random weights, made directly in their dtype on their device."""
    model_class(config)
    with device, no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    model.tie_weights()
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        _fill(name, parameter, generator)
    return model


@torch.no_grad()
def _fill(name: str, parameter: nn.Parameter, generator: torch.Generator) -> None:
    if parameter.dim() > 1:
        parameter.normal_(std=_DUMMY_STD, generator=generator)
    else:
        parameter.fill_(0.0 if name.endswith("bias") else 1.0)
