"""Which packages does the check need that this Python does not have?

The standard library alone: it runs before anything else is imported, on machines that are offline and whose torch must
stay as it is. `tests/unit/bench/gpu/test_packages.py` compares the list with what is really imported.
"""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

_CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
_LOOPBACK_WORKS = (1, 21)  # of UCX: older ones cannot connect over that device (transport/ucx.py)

NEEDED: Mapping[str, tuple[str, ...]] = {
    "aiohttp": ("aiohttp",),
    "cyclopts": ("cyclopts", "attrs", "docstring-parser", "rich-rst"),
    "gguf": ("gguf",),
    "httptools": ("httptools",),
    "huggingface_hub": ("huggingface-hub",),
    "hypothesis": ("hypothesis", "sortedcontainers"),
    "jinja2": ("jinja2",),
    "llguidance": ("llguidance",),
    "msgspec": ("msgspec",),
    "numpy": ("numpy",),
    "packaging": ("packaging",),
    "prometheus_client": ("prometheus-client",),
    "psutil": ("psutil",),
    "pytest": ("pytest",),
    "pytest_timeout": ("pytest-timeout",),
    "rich": ("rich",),
    "safetensors": ("safetensors",),
    "starlette": ("starlette",),
    "tokenizers": ("tokenizers",),
    "torch": ("torch",),
    "transformers": ("transformers",),
    "triton": ("triton",),
    "ucxx": ("ucxx-cu13", "libucxx-cu13", "libucx-cu13", "rmm-cu13", "librmm-cu13", "rapids-logger", "cuda-core"),
    "uvicorn": ("uvicorn",),
    "uvloop": ("uvloop",),
    "zmq": ("pyzmq",),
}
"""Module -> the distribution that brings it, and those that have to come with it."""


def missing(modules: Iterable[str] = NEEDED) -> list[str]:
    """Of these modules, those that cannot be found."""
    return [module for module in modules if find_spec(module) is None]


def distributions(absent: Iterable[str]) -> list[str]:
    """What would bring these modules, without what is installed already."""
    return [name for module in absent for name in NEEDED[module] if not _is_installed(name)]


def message(names: Sequence[str], pins: Mapping[str, str]) -> str:
    """What to install, as one command that can be copied; torch is for its user to choose."""
    pinned = [f"{name}=={pins[name]}" if name in pins else name for name in names if name != "torch"]
    python = ".".join(map(str, sys.version_info[:3]))
    torch = "First a torch that fits the driver. " if "torch" in names else ""
    return (
        f"the check needs {len(names)} packages that this Python {python} does not have: {', '.join(names)}. {torch}"
        "What stands beside torch, and leaves it as it is:\n\n"
        f"  {sys.executable} -m pip install --no-deps {' '.join(pinned)}\n\n"
        "Offline: `pip download` with the same words on another machine of the same platform and Python, then "
        "`pip install --no-deps --no-index --find-links DIRECTORY` with them here."
    )


def pins(constraints: Path = _CONSTRAINTS) -> dict[str, str]:
    """The versions that the project is tested with; none where the file is not there."""
    if not constraints.is_file():
        return {}
    return dict(re.findall(r"^([\w.-]+)==(\S+)$", constraints.read_text(encoding="utf-8"), re.MULTILINE))


def unreachable(ucx: str | None, devices: Iterable[str]) -> str | None:
    """Why two processes here cannot reach each other over UCX; None where they can.

    Args:
        ucx: version of the libucx that is installed; None: not from a wheel, so nobody knows.
        devices: network devices of this machine.
    """
    if ucx is None or tuple(map(int, re.findall(r"\d+", ucx)[:2])) >= _LOOPBACK_WORKS or set(devices) - {"lo"}:
        return None
    return (
        f"libucx {ucx} cannot connect over the loopback device, and this machine has no other: every part with two "
        "workers will fail; libucx 1.21 or later is needed (without its static libraries, *.a, it is a third as large)"
    )


def ucx_version() -> str | None:
    for name in ("libucx-cu13", "libucx-cu12"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def network_devices() -> list[str]:
    directory = Path("/sys/class/net")
    return [path.name for path in directory.iterdir()] if directory.is_dir() else []
