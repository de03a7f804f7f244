"""Which GPUs and which driver are there, asked without torch?

The kernel's files name them even where `nvidia-smi` is missing or fails; it adds memory and how they are connected.
"""

import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from launch.doctor.facts import Gpu, GpuFacts, GpuPath

Run = Callable[[Sequence[str]], str]
"""Runs a program and returns what it prints. Raises OSError when it is not there, CommandFailed when it fails."""

_QUERY = (
    "nvidia-smi",
    "--query-gpu=index,name,memory.total,memory.used,driver_version",
    "--format=csv,noheader,nounits",
)
_TIMEOUT_S = 8.0
_DRIVER = re.compile(r"NVRM version:.*?\s(\d+\.\d+(?:\.\d+)?)\s")
_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


class CommandFailed(Exception):
    """A program was there and did not do its work."""


def run(command: Sequence[str]) -> str:
    """
    Raises:
        OSError: there is no such program.
        CommandFailed: it fails or takes too long.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(f"no answer within {_TIMEOUT_S:g} s") from error
    if done.returncode != 0:
        words = " ".join((done.stdout + done.stderr).split())
        raise CommandFailed(words[:300] or f"exit code {done.returncode}")
    return done.stdout


def gpus(root: Path, run: Run) -> GpuFacts:
    driver, found = _of_kernel(root)
    try:
        rows = [line.split(", ") for line in run(_QUERY).splitlines() if line.strip()]
    except FileNotFoundError:
        return GpuFacts(driver=driver, gpus=found)
    except (OSError, CommandFailed) as error:
        return GpuFacts(driver=driver, gpus=found, nvidia_smi_error=str(error))
    listed = tuple(_gpu(row) for row in rows if len(row) == 5)
    if listed:
        driver = rows[0][4].strip()
    return GpuFacts(driver=driver, gpus=listed, paths=_paths(run) if len(listed) > 1 else ())


def _of_kernel(root: Path) -> tuple[str | None, tuple[Gpu, ...]]:
    version = root / "proc/driver/nvidia/version"
    match = _DRIVER.search(version.read_text()) if version.is_file() else None
    names = []
    for information in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        model = re.search(r"^Model:\s*(.+)$", information.read_text(), re.MULTILINE)
        names.append(model[1].strip() if model else "unknown GPU")
    return match[1] if match else None, tuple(Gpu(index=i, name=name) for i, name in enumerate(names))


def _gpu(row: Sequence[str]) -> Gpu:
    index, name, total, used, _ = row
    return Gpu(index=int(index), name=name, memory_bytes=_mebibytes(total), memory_used_bytes=_mebibytes(used))


def _mebibytes(text: str) -> int | None:
    return int(text) << 20 if text.strip().isdigit() else None  # "[N/A]" where GPU and CPU share memory


def _paths(run: Run) -> tuple[GpuPath, ...]:
    try:
        return parse_topology(run(("nvidia-smi", "topo", "-m")))
    except (OSError, CommandFailed):
        return ()  # older ones cannot say; that is no fault


def parse_topology(text: str) -> tuple[GpuPath, ...]:
    """The upper half of the matrix that `nvidia-smi topo -m` prints, GPUs only."""
    lines = [_ESCAPE.sub("", line).split("\t") for line in text.splitlines()]
    rows = [[cell.strip() for cell in line] for line in lines]
    header = next((row for row in rows if "GPU0" in row[1:]), [])
    columns = {column: name for column, name in enumerate(header) if re.fullmatch(r"GPU\d+", name)}
    paths = []
    for row in rows:
        if row is header or not re.fullmatch(r"GPU\d+", row[0]):
            continue
        for column, name in columns.items():
            a, b = int(row[0][3:]), int(name[3:])
            if a < b and column < len(row) and row[column]:
                paths.append(GpuPath(a=a, b=b, path=row[column]))
    return tuple(paths)
