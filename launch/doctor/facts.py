"""What can `kvrelay doctor` know about a machine?

The structs are the `facts` of its JSON (`launch.doctor.report`): a field that changes its meaning or goes away raises
the schema version there. Bytes are bytes, `None` is "there is none" or "nobody could say".
"""

from msgspec import Struct

from launch.ports import PortHolder


class CpuFacts(Struct, frozen=True, kw_only=True):
    cores: tuple[int, ...]  # that we may run on
    machine_cores: int
    quota_cores: float | None  # what a cgroup lets us use of them
    load_1m: float


class MemoryFacts(Struct, frozen=True, kw_only=True):
    total_bytes: int
    available_bytes: int
    limit_bytes: int | None  # of the narrowest cgroup around us
    limit_free_bytes: int | None
    swap_total_bytes: int
    swap_used_bytes: int


class Gpu(Struct, frozen=True, kw_only=True):
    index: int
    name: str
    memory_bytes: int | None = None
    memory_used_bytes: int | None = None


class GpuPath(Struct, frozen=True, kw_only=True):
    """How two GPUs reach each other, in the words of `nvidia-smi topo -m`: NV18, PIX, SYS, ..."""

    a: int
    b: int
    path: str


class GpuFacts(Struct, frozen=True, kw_only=True):
    driver: str | None  # of the kernel module, if there is one
    gpus: tuple[Gpu, ...] = ()
    paths: tuple[GpuPath, ...] = ()
    nvidia_smi_error: str | None = None  # why it says nothing; None also where there is no nvidia-smi


class LinkFacts(Struct, frozen=True, kw_only=True):
    """What a mock cell of one prefill and one decode worker measured at its start, or why it did not start."""

    ready_after_s: float | None = None
    transport: str | None = None
    gigabytes_per_s: float | None = None
    memcpy_gigabytes_per_s: float | None = None
    slow: bool = False  # by the rule of `coordinator.links.is_slow`
    error: str | None = None
    unusable_directory: str | None = None  # where its sockets could not be put, if that was it
    last_lines: tuple[str, ...] = ()


class LimitFacts(Struct, frozen=True, kw_only=True):
    """Soft limits of this process, which its children inherit; `None` is unlimited."""

    open_files: int | None
    processes: int | None
    locked_memory_bytes: int | None
    shm_bytes: int | None  # size of /dev/shm; None: there is none
    shm_free_bytes: int | None
    rdma_devices: tuple[str, ...]


class PortFacts(Struct, frozen=True, kw_only=True):
    port: int
    free: bool
    holder: PortHolder | None = None  # None also when it belongs to somebody whose processes we may not see
    free_port: int | None = None  # another one that is free


class CellFacts(Struct, frozen=True, kw_only=True):
    directory: str
    running: tuple[str, ...]  # names of the cells of this user


class Package(Struct, frozen=True, kw_only=True):
    name: str
    needs: str  # a version specifier; empty: any version
    installed: str | None
    matches: bool


class SoftwareFacts(Struct, frozen=True, kw_only=True):
    system: str
    platform: str
    python: str
    python_executable: str
    python_needs: str
    python_matches: bool
    kvrelay: str | None  # None: not installed, so nobody says what it needs
    packages: tuple[Package, ...] = ()


class ModelFacts(Struct, frozen=True, kw_only=True):
    name: str
    directory: str
    present: bool
    damage: tuple[str, ...]  # files that are missing or have the wrong length
    cache_bytes: int  # all that lies in the cache
    free_bytes: int  # on its disk
    needed_bytes: int  # on that disk, to fetch the model; 0 when it is there
    writable: bool


class Variable(Struct, frozen=True, kw_only=True):
    name: str
    value: str


class Facts(Struct, frozen=True, kw_only=True):
    """`None`: this could not be found out; a finding says why."""

    cpu: CpuFacts | None = None
    memory: MemoryFacts | None = None
    gpu: GpuFacts | None = None
    link: LinkFacts | None = None
    limits: LimitFacts | None = None
    port: PortFacts | None = None
    cells: CellFacts | None = None
    software: SoftwareFacts | None = None
    model: ModelFacts | None = None
    environment: tuple[Variable, ...] = ()
