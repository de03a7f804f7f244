"""Is there room on a GPU for what a worker is about to allocate?

Workers that share a GPU each bring a copy of the weights and a pool of their own, and none sees what the others will
allocate a second later. So each adds up what all of them need, which the launcher has told it, before it makes its
pool: all are refused, or none. Called on the engine thread; `crowding` is pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

_SPARE_BYTES = 3 << 29
"""Of each worker, beside weights and pool: CUDA context, kernels, workspaces of libraries, one step's activations."""

_ADVICE = (
    "lower --prefill-kv-tokens or --decode-kv-tokens, start fewer workers, or give them GPUs of their own with --device"
)


class NoRoom(Exception):
    """The GPU is too small, or too full, for the pools that were asked for; the text names the flags to lower."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one GPU: what this process could allocate now, and all there is."""

    free: int
    total: int


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes: one copy of the weights, the pool of this worker, and those of the others of its cell on its GPU."""

    weights: int
    pool: int
    others: Sequence[int] = ()

    @property
    def workers(self) -> int:
        return 1 + len(self.others)

    @property
    def total(self) -> int:
        return self.workers * (self.weights + _SPARE_BYTES) + self.pool + sum(self.others)


def crowding(need: Need, memory: Memory) -> str | None:
    """Why the pool must not be made; None where there is room. The worker's own weights are in the GPU already."""
    if need.total > memory.total:
        pools = " + ".join(_gigabytes(pool) for pool in (need.pool, *need.others))
        return (
            f"{need.workers} {'workers need' if need.others else 'worker needs'} {_gigabytes(need.total)} GB, and it "
            f"has {_gigabytes(memory.total)} GB: weights of {_gigabytes(need.weights)} GB and "
            f"{_gigabytes(_SPARE_BYTES)} GB for computing, each, and KV pools of {pools} GB; {_ADVICE}"
        )
    return too_large(need.pool, memory)


def too_large(pool: int, memory: Memory) -> str | None:
    """Why a pool of so many bytes cannot be made now; None where it can."""
    if pool <= memory.free:
        return None
    return (
        f"a KV pool of {_gigabytes(pool)} GB does not fit into the {_gigabytes(memory.free)} GB that are free of "
        f"{_gigabytes(memory.total)} GB; end what else uses that GPU (nvidia-smi lists it), or {_ADVICE}"
    )


def check(model: torch.nn.Module, pool_bytes: int, others: Sequence[int], device: torch.device) -> None:
    """
    Args:
        model: on `device`.
        pool_bytes: of the pool that is to be made.
        others: bytes of the pool of each other worker of the cell on this GPU.

    Raises:
        NoRoom: and what to lower.
    """
    if device.type != "cuda":
        return
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    _raise(crowding(Need(weights, pool_bytes, others), _memory(device)), device)


def check_pool(nbytes: int, device: torch.device) -> None:
    """Before a pool of so many bytes is made on a GPU, whoever makes it.

    Raises:
        NoRoom: it does not fit.
    """
    _raise(too_large(nbytes, _memory(device)), device)


def _memory(device: torch.device) -> Memory:
    free, total = torch.cuda.mem_get_info(device)
    return Memory(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device), total)


def _raise(why: str | None, device: torch.device) -> None:
    if why is not None:
        raise NoRoom(f"{device}: {why}")


def _gigabytes(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f}"
