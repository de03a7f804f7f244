"""What does one end of a measured transfer do?

A process of its own, started by `bench.transfer` or `bench.gpu`: memory, a UCX wire and a KV port, as a worker has
them.
"""

import zlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bench.child import Channel, serve
from bench.transfer import Job, Moved, Opened, Opening, Posted
from runtime.buffers import MemoryKind, Region
from runtime.clock import SystemClock
from runtime.process import host_id, new_epoch
from transport.kv import PIECE_BYTES, KvPort
from transport.ucx import UcxWire, configuration


class Bytes(Protocol):
    """Random bytes somewhere."""

    def region(self, run: slice) -> Region: ...

    def clear(self, run: slice) -> None: ...

    def read(self, run: slice) -> NDArray[np.uint8]:
        """A copy in the memory of the host."""
        ...


class HostBytes:
    def __init__(self, nbytes: int) -> None:
        self._bytes: NDArray[np.uint8] = np.random.default_rng().integers(0, 256, nbytes, np.uint8)

    def region(self, run: slice) -> Region:
        return Region(self._bytes.ctypes.data + run.start, run.stop - run.start)

    def clear(self, run: slice) -> None:
        self._bytes[run] = 0

    def read(self, run: slice) -> NDArray[np.uint8]:
        return self._bytes[run].copy()


class CudaBytes:
    """On the loop thread, which thereby has the CUDA context that UCX needs."""

    def __init__(self, nbytes: int, device: str) -> None:
        import torch  # noqa: PLC0415 - it takes seconds, and host memory needs none of it

        self._device = torch.device(device)
        torch.cuda.set_device(self._device)
        self._bytes = torch.randint(0, 256, (nbytes,), dtype=torch.uint8, device=self._device)
        self._synchronize = torch.cuda.synchronize
        self._synchronize(self._device)

    def region(self, run: slice) -> Region:
        address = self._bytes.data_ptr() + run.start
        return Region(address, run.stop - run.start, MemoryKind.CUDA, self._device.index or 0)

    def clear(self, run: slice) -> None:
        self._bytes[run] = 0
        self._synchronize(self._device)

    def read(self, run: slice) -> NDArray[np.uint8]:
        there: NDArray[np.uint8] = self._bytes[run].cpu().numpy()
        return there


class Pool:
    """Memory that is cut into runs, with as large a gap behind each as the run."""

    def __init__(self, nbytes: int, device: str = "cpu") -> None:
        self._bytes: Bytes = HostBytes(nbytes) if device == "cpu" else CudaBytes(nbytes, device)

    @property
    def kind(self) -> MemoryKind:
        return self._bytes.region(slice(0, 1)).kind

    def regions(self, nbytes: int, run_bytes: int) -> tuple[Region, ...]:
        return tuple(self._bytes.region(run) for run in _runs(nbytes, run_bytes))

    def clear(self, nbytes: int, run_bytes: int) -> None:
        for run in _runs(nbytes, run_bytes):
            self._bytes.clear(run)

    def checksum(self, nbytes: int, run_bytes: int) -> int:
        value = 0
        for run in _runs(nbytes, run_bytes):
            value = zlib.crc32(self._bytes.read(run).data, value)
        return value


def _runs(nbytes: int, run_bytes: int) -> Sequence[slice]:
    starts = range(0, nbytes, run_bytes)
    return [slice(2 * start, 2 * start + min(run_bytes, nbytes - start)) for start in starts]


def open_port(worker_id: str, pool: Pool, clock: SystemClock, piece_bytes: int = PIECE_BYTES) -> KvPort:
    return KvPort(
        UcxWire(pool.kind),
        worker_id=worker_id,
        epoch=new_epoch(),
        fingerprint="bench",
        host_id=host_id(),
        clock=clock,
        piece_bytes=piece_bytes,
    )


async def _main(channel: Channel) -> None:
    clock = SystemClock()
    opening = await channel.receive(Opening)
    pool = Pool(opening.pool_bytes, opening.device)
    port = open_port(opening.worker_id, pool, clock, opening.piece_bytes)
    channel.send(Opened(peer=port.peer, ucx_options=configuration(pool.kind)))
    try:
        while True:
            job = await channel.receive(Job)
            seconds = await (_send(port, pool, job, clock) if job.sends else _receive(port, pool, job, channel))
            checksum = pool.checksum(job.nbytes, job.run_bytes) if job.verify else 0
            channel.send(Moved(seconds=seconds, checksum=checksum, transport=port.transport_name(job.peer)))
    finally:
        port.close()


async def _send(port: KvPort, pool: Pool, job: Job, clock: SystemClock) -> float:
    regions = pool.regions(job.nbytes, job.run_bytes)
    start = clock.now()
    outbound = port.send(job.transfer_id, job.peer, regions)
    outbound.finish(digests=b"", note=b"")
    outcome = await outbound.settled()
    if not outcome.ok:
        raise AssertionError(f"not sent: {outcome.error}")
    return clock.now() - start


async def _receive(port: KvPort, pool: Pool, job: Job, channel: Channel) -> float:
    if job.verify:
        pool.clear(job.nbytes, job.run_bytes)
    inbound = port.expect(job.transfer_id, job.peer, pool.regions(job.nbytes, job.run_bytes))
    channel.send(Posted())
    outcome = await inbound.settled()
    if not outcome.ok:
        raise AssertionError(f"not received: {outcome.error}")
    return outcome.seconds


if __name__ == "__main__":
    serve(_main)
