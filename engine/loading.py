"""How does a model get into memory?

Any causal language model that transformers knows, from a local directory or the hub, safetensors only and without code
of the checkpoint's own. Called by `engine.core.open_engine` and by the benchmarks that want the model alone.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights
from transformers.utils import logging as transformers_logging

from engine.config import DtypeName, LoadFormat

Progress = Callable[[str, float | None], None]
"""Called, on the thread that loads, with what is being done and how much of it, 0 to 1, where that is known."""

_DUMMY_STD = 0.02
_logging: Any = transformers_logging  # its functions are not annotated


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
    """A model in evaluation mode, with the fastest attention of transformers that is exact for it.

    Raises:
        LoadError: not a model, not a causal language model, weights missing, or not safetensors.
    """
    config = read_config(model)
    wanted = _dtype(dtype, device)
    loaded: Any  # PreTrainedModel; transformers does not annotate its methods
    if load_format == "dummy":
        on_progress("drawing random weights", None)
        loaded = _dummy(config, wanted, device, seed)
    else:
        on_progress("loading weights", None)
        loaded = _pretrained(model, config, wanted)
    if getattr(config.get_text_config(decoder=True), "attn_logit_softcapping", None) is not None:
        loaded.set_attn_implementation("eager")  # sdpa would leave the soft-cap out: transformers up to 5.17 lets it
    ready: PreTrainedModel = loaded.to(device).eval().requires_grad_(False)
    return ready


def read_config(model: str) -> PreTrainedConfig:
    """
    Raises:
        LoadError: no such model, or one that transformers does not know.
    """
    path = Path(model)
    if path.is_dir() and not (path / "config.json").is_file():
        raise LoadError(f"{model} is a directory without config.json: not a Hugging Face model")
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise LoadError(f"no usable model configuration at {model}: {error}") from error
    return config


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """
    Raises:
        LoadError: transformers has no causal language model of this architecture.
    """
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise LoadError(f"{config.model_type!r} is not a causal language model in transformers")
    return cast("type[PreTrainedModel]", MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Only errors from transformers' own logger, and no progress bars, for as long as this lasts."""
    verbosity, bars = _logging.get_verbosity(), _logging.is_progress_bar_enabled()
    _logging.set_verbosity_error()
    _logging.disable_progress_bar()
    try:
        yield
    finally:
        _logging.set_verbosity(verbosity)
        if bars:
            _logging.enable_progress_bar()


def _dtype(name: DtypeName, device: torch.device) -> torch.dtype | None:
    """None: the checkpoint's own."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else None
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _pretrained(model: str, config: PreTrainedConfig, dtype: torch.dtype | None) -> Any:  # noqa: ANN401  # see `load`
    model_class(config)
    auto: Any = AutoModelForCausalLM
    try:
        loaded, report = auto.from_pretrained(
            model,
            config=config,
            dtype=dtype or "auto",
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise LoadError(f"cannot load {model}: {error}") from error
    if missing := sorted(report["missing_keys"]):  # transformers would go on with random values in their place
        raise LoadError(f"{model} lacks the weights {', '.join(missing[:5])}{' and others' * (len(missing) > 5)}")
    return loaded


def _dummy(config: PreTrainedConfig, dtype: torch.dtype | None, device: torch.device, seed: int) -> PreTrainedModel:
    """The architecture with seeded random weights, made directly in their dtype on their device."""
    model_class(config)
    own = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    auto: Any = AutoModelForCausalLM
    with device, no_init_weights():
        model: PreTrainedModel = auto.from_config(config, dtype=dtype or own, trust_remote_code=False)
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
