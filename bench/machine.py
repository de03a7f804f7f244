"""On what was it measured?

Names the hardware, the versions and the commit, never the host, its user or a path. Called once per run.
"""

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

from msgspec import Struct

ROOT = Path(__file__).parents[1]
_WITHOUT_RESULTS = ("--", ".", ":(exclude)bench/results")


class Environment(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a number means nothing without. None: not known, or not installed."""

    date: str  # UTC
    command: str
    commit: str | None  # short
    dirty: bool | None  # the tree differed from the commit
    cpu: str
    cores: int  # that this process may use
    load_average: float  # of the minute before the run: what else was running
    python: str
    torch: str | None
    transformers: str | None
    ucx: str | None
    ucxx: str | None


def environment(command: str) -> Environment:
    status = _git("status", "--porcelain", *_WITHOUT_RESULTS)
    return Environment(
        date=datetime.now(UTC).date().isoformat(),
        command=command,
        commit=_git("rev-parse", "--short", "HEAD"),
        dirty=bool(status) if status is not None else None,
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        load_average=round(os.getloadavg()[0], 2),
        python=platform.python_version(),
        torch=_version("torch"),
        transformers=_version("transformers"),
        ucx=_version("libucx"),
        ucxx=_version("ucxx"),
    )


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    return model[1] if model else platform.machine()


def _version(module: str) -> str | None:
    """Of the distribution that brings `module`, which for UCX has the CUDA version in its name."""
    names = packages_distributions().get(module, [])
    try:
        return version(names[0]) if names else None
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None  # no git, or not a clone
    return done.stdout.strip()
