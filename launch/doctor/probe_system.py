"""What does the kernel say about cores, memory and limits?

Every probe reads below a root directory that a test can fake; what is not there is `None`, not an error.
"""

import os
import resource
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from launch.doctor.facts import CpuFacts, LimitFacts, MemoryFacts, Variable

_UNLIMITED_V1 = 1 << 60  # version 1 writes "no limit" as a number near 2^63

_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "KVRELAY_CACHE",
    "OMP_NUM_THREADS",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TMPDIR",
    "XDG_CACHE_HOME",
    "XDG_RUNTIME_DIR",
)
"""What changes kvrelay's behaviour, with every UCX_*. No secrets: the report may be pasted anywhere."""


def cpu(root: Path, affinity: Sequence[int]) -> CpuFacts:
    listed = (root / "proc/cpuinfo").read_text(errors="replace")
    load = (root / "proc/loadavg").read_text().split()
    return CpuFacts(
        cores=tuple(sorted(affinity)),
        machine_cores=max(listed.count("processor\t"), len(affinity)),
        quota_cores=_quota(root),
        load_1m=float(load[0]),
    )


def memory(root: Path) -> MemoryFacts:
    rows = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines() if ":" in line)
    kilobytes = {name: int(value.split()[0]) for name, value in rows.items()}
    limit, limit_free = _memory_limit(root)
    return MemoryFacts(
        total_bytes=kilobytes["MemTotal"] * 1024,
        available_bytes=kilobytes["MemAvailable"] * 1024,
        limit_bytes=limit,
        limit_free_bytes=limit_free,
        swap_total_bytes=kilobytes.get("SwapTotal", 0) * 1024,
        swap_used_bytes=(kilobytes.get("SwapTotal", 0) - kilobytes.get("SwapFree", 0)) * 1024,
    )


def limits(root: Path) -> LimitFacts:
    shm = root / "dev/shm"
    usage = shutil.disk_usage(shm) if shm.is_dir() else None
    infiniband = root / "sys/class/infiniband"
    return LimitFacts(
        open_files=_soft(resource.RLIMIT_NOFILE),
        processes=_soft(resource.RLIMIT_NPROC),
        locked_memory_bytes=_soft(resource.RLIMIT_MEMLOCK),
        shm_bytes=None if usage is None else usage.total,
        shm_free_bytes=None if usage is None else usage.free,
        rdma_devices=tuple(sorted(os.listdir(infiniband))) if infiniband.is_dir() else (),
    )


def environment(environ: Mapping[str, str]) -> tuple[Variable, ...]:
    chosen = (name for name in sorted(environ) if name in _VARIABLES or name.startswith("UCX_"))
    return tuple(Variable(name=name, value=environ[name]) for name in chosen)


def _soft(which: int) -> int | None:
    soft, _ = resource.getrlimit(which)
    return None if soft == resource.RLIM_INFINITY else soft


# --- control groups --------------------------------------------------------------------------------------------------


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Directories of the groups around this process, from its own outwards, of both versions of the interface.

    In a container the path that the kernel names may lie outside of what is mounted; the mount's root is ours then.
    """
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mounts = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        elif controller in controllers.split(","):
            mounts = [root / "sys/fs/cgroup" / controllers, root / "sys/fs/cgroup" / controller]
        else:
            continue
        inner = Path(path.lstrip("/"))
        for mount in mounts:
            for level in (inner, *inner.parents):
                if (mount / level).is_dir():
                    yield mount / level


def _quota(root: Path) -> float | None:
    quotas = []
    for group in _groups(root, "cpu"):
        words = _words(group / "cpu.max")
        if not words:
            words = [*_words(group / "cpu.cfs_quota_us"), *_words(group / "cpu.cfs_period_us")]
        if len(words) == 2 and words[0].isdigit():  # neither "max" nor -1
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def _memory_limit(root: Path) -> tuple[int | None, int | None]:
    """The narrowest limit around us, and what is free below the one that leaves least."""
    limits: list[int] = []
    free: list[int] = []
    for group in _groups(root, "memory"):
        limit = _number(group / "memory.max", group / "memory.limit_in_bytes")
        used = _number(group / "memory.current", group / "memory.usage_in_bytes")
        if limit is None or limit >= _UNLIMITED_V1:
            continue
        limits.append(limit)
        if used is not None:
            free.append(max(0, limit - used + _droppable(group)))
    return min(limits, default=None), min(free, default=None)


def _droppable(group: Path) -> int:
    """File cache that the kernel gives back before it kills anybody."""
    rows = [line.split() for line in _lines(group / "memory.stat")]
    values = {row[0]: int(row[1]) for row in rows if len(row) == 2}
    return values.get("total_inactive_file", values.get("inactive_file", 0))


def _number(*paths: Path) -> int | None:
    words = [word for path in paths for word in _words(path)]
    return int(words[0]) if words and words[0].isdigit() else None


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
