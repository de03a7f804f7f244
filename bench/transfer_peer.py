"""What does one end of a measured transfer do?

A process of its own, started by `bench.transfer`: host memory, a UCX wire and a KV port, as a worker has them.
"""

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bench.child import Channel, serve
from bench.transfer import Job, Moved, Opened, Opening, Posted
from runtime.buffers import Region
from runtime.clock import SystemClock
from runtime.process import host_id, new_epoch
from transport.kv import KvPort
from transport.ucx import UcxWire, configuration


class Pool:
    """Random bytes."""

    def __init__(self, nbytes: int) -> None:
        self._bytes: NDArray[np.uint8] = np.random.default_rng().integers(0, 256, nbytes, np.uint8)

    def regions(self, nbytes: int, run_bytes: int) -> tuple[Region, ...]:
        base = self._bytes.ctypes.data
        runs = _runs(nbytes, run_bytes)
        return tuple(Region(base + run.start, run.stop - run.start) for run in runs)

    def clear(self, nbytes: int, run_bytes: int) -> None:
        for run in _runs(nbytes, run_bytes):
            self._bytes[run] = 0

    def checksum(self, nbytes: int, run_bytes: int) -> int:
        value = 0
        for run in _runs(nbytes, run_bytes):
            value = zlib.crc32(self._bytes[run].data, value)
        return value


def _runs(nbytes: int, run_bytes: int) -> Sequence[slice]:
    starts = range(0, nbytes, run_bytes)
    return [slice(2 * start, 2 * start + min(run_bytes, nbytes - start)) for start in starts]


async def _main(channel: Channel) -> None:
    clock = SystemClock()
    opening = await channel.receive(Opening)
    pool = Pool(opening.pool_bytes)
    port = KvPort(
        UcxWire(), worker_id=opening.worker_id, epoch=new_epoch(), fingerprint="bench", host_id=host_id(), clock=clock
    )
    channel.send(Opened(peer=port.peer, ucx_options=configuration()))
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
