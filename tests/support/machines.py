"""Machines for the tests of `kvrelay doctor`: a good one, to be spoiled one fact at a time."""

import msgspec

from launch.doctor.facts import (
    CellFacts,
    CpuFacts,
    Facts,
    Gpu,
    GpuFacts,
    LimitFacts,
    LinkFacts,
    MemoryFacts,
    ModelFacts,
    Package,
    PortFacts,
    SoftwareFacts,
    Variable,
)

CPU = CpuFacts(cores=(0, 1, 2, 3), machine_cores=4, quota_cores=None, load_1m=0.1)
MEMORY = MemoryFacts(
    total_bytes=16_000_000_000,
    available_bytes=12_000_000_000,
    limit_bytes=None,
    limit_free_bytes=None,
    swap_total_bytes=0,
    swap_used_bytes=0,
)
LINK = LinkFacts(ready_after_s=1.0, transport="tcp", gigabytes_per_s=1.5, memcpy_gigabytes_per_s=15.0)
LIMITS = LimitFacts(
    open_files=20_000,
    processes=None,
    locked_memory_bytes=8_000_000,
    shm_bytes=8_000_000_000,
    shm_free_bytes=8_000_000_000,
    rdma_devices=(),
)
PORT = PortFacts(port=8000, free=True)
MODEL = ModelFacts(
    name="small",
    directory="/cache/small",
    present=True,
    damage=(),
    cache_bytes=271_000_000,
    free_bytes=9_000_000_000,
    needed_bytes=0,
    writable=True,
)
TORCH = Package(name="torch", needs=">=2.11", installed="2.13.0", matches=True)
SOFTWARE = SoftwareFacts(
    system="Linux",
    platform="Linux 6.1 (x86_64)",
    python="3.11.7",
    python_executable="/venv/bin/python",
    python_needs=">=3.11",
    python_matches=True,
    kvrelay="0.1.0",
    packages=(TORCH,),
)
H200 = Gpu(index=0, name="NVIDIA H200", memory_bytes=150_000_000_000, memory_used_bytes=0)
GPU = GpuFacts(driver="580.65.06", gpus=(H200,))

GOOD = Facts(
    cpu=CPU,
    memory=MEMORY,
    gpu=GpuFacts(driver=None),
    link=LINK,
    limits=LIMITS,
    port=PORT,
    cells=CellFacts(directory="/run/kvrelay", running=()),
    software=SOFTWARE,
    model=MODEL,
)


def good_but(**changes: object) -> Facts:
    return msgspec.structs.replace(GOOD, **changes)


def variables(**values: str) -> tuple[Variable, ...]:
    return tuple(Variable(name=name, value=value) for name, value in values.items())
