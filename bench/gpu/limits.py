"""What can this device do, and what is it?

The rates that everything else is compared with: a copy inside its memory, bytes read and bytes written; a sum over it,
which only reads; and a product of two large matrices of random numbers, because zeros draw less power and run faster.
"""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version

import torch

from bench.gpu import packages
from bench.gpu.floors import copied_bytes
from bench.gpu.parts import Rates, Settings, Tell
from bench.gpu.timing import device_seconds
from bench.rows import Row, summarise

_REPETITIONS = 15
_GPU_BYTES = 4 << 30  # several times any cache
_CPU_BYTES = 64 << 20
_PACKAGES = ("torch", "triton", "transformers", "libucx-cu13", "ucxx-cu13", "numpy")
_ASKED_OF_SMI = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"

_NOTES = {
    "copy": "memory: bytes read and bytes written, one large copy",
    "read": "memory: bytes read by the sum of 32-bit numbers",
    "matrix": "arithmetic: the library's best product of square matrices of random numbers",
}


def run(settings: Settings, tell: Tell) -> None:
    device = torch.device(settings.device)
    tell(facts=_facts(settings))
    trouble = packages.unreachable(packages.ucx_version(), packages.network_devices())
    if trouble is not None:
        tell(note=trouble)
    nbytes = _GPU_BYTES if settings.on_gpu else _CPU_BYTES
    edge = 8192 if settings.on_gpu else 256
    copy, read = _memory_rates(nbytes, device)
    matrix = _matrix_rates(edge, settings.shape.dtype, device)
    tell(_row("copy", copy, "GB/s", 1e-9, MiB=nbytes >> 20))
    tell(_row("read", read, "GB/s", 1e-9, MiB=nbytes >> 20))
    tell(_row("matrix", matrix, "TFLOP/s", 1e-12, edge=edge, dtype=settings.shape.dtype))
    middle = _REPETITIONS // 2
    tell(rates=Rates(copy=sorted(copy)[middle], read=sorted(read)[middle], matrix=sorted(matrix)[middle]))
    tell(facts={f"{key} after": value for key, value in _smi().items() if "clocks" in key})


def _memory_rates(nbytes: int, device: torch.device) -> tuple[list[float], list[float]]:
    """Bytes per second of a copy, read and written, and of a sum, read."""
    source = torch.randint(0, 1 << 30, (nbytes // 4,), dtype=torch.int32, device=device).view(torch.float32)
    target = torch.empty_like(source)
    copying = device_seconds(lambda: target.copy_(source), device, _REPETITIONS)
    reading = device_seconds(source.sum, device, _REPETITIONS)
    return [copied_bytes(nbytes) / seconds for seconds in copying], [nbytes / seconds for seconds in reading]


def _matrix_rates(edge: int, dtype: str, device: torch.device) -> list[float]:
    """Operations per second."""
    left, right = (torch.randn(edge, edge, dtype=getattr(torch, dtype), device=device) for _ in range(2))
    return [2 * edge**3 / seconds for seconds in device_seconds(lambda: left @ right, device, _REPETITIONS)]


def _row(name: str, rates: list[float], unit: str, scale: float, **parameters: str | int) -> Row:
    return summarise("limits", name, rates, unit=unit, scale=scale, limited_by=_NOTES[name], parameters=parameters)


def _facts(settings: Settings) -> dict[str, str]:
    facts = {"python": platform.python_version(), "system": platform.platform(), "cores": str(os.cpu_count())}
    for package in _PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    if settings.on_gpu:
        properties = torch.cuda.get_device_properties(torch.device(settings.device))
        facts |= {
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": str(properties.multi_processor_count),
            "memory": f"{properties.total_memory / 2**30:.1f} GiB",
            "cuda": str(torch.version.cuda),
        }
        facts |= _smi()
    return facts


def _smi() -> dict[str, str]:
    """What nvidia-smi says of the first GPU; nothing where it says nothing."""
    command = ["nvidia-smi", f"--query-gpu={_ASKED_OF_SMI}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in answer.splitlines()[0].split(",")] if answer.strip() else []
    return dict(zip(_ASKED_OF_SMI.split(","), values, strict=False))
