"""What does a process do that the check kills, or that has to survive the other's death?

It has memory, a UCX wire and a KV port as a worker has them, starts transfers and probes its device when it is told to,
and tells of each transfer that has settled. Started by `bench.gpu.killed`.
"""

import asyncio
import os
from contextlib import suppress

from msgspec import Struct

from bench.child import Channel, ChildEnded, serve
from bench.transfer_peer import Pool, open_port
from runtime.clock import SystemClock
from transport.kv import KvPort
from transport.messages.common import KvPeer


class Open(Struct, frozen=True):
    """The first message: what it is, and where its memory is."""

    worker_id: str
    pool_bytes: int
    device: str


class Opened(Struct, frozen=True):
    pid: int
    peer: KvPeer


class Begin(Struct, frozen=True):
    """Start these transfers, all of the same `nbytes` bytes in one run."""

    transfer_ids: tuple[int, ...]
    peer: KvPeer
    sends: bool
    nbytes: int
    verify: bool


class Gone(Struct, frozen=True):
    """The peer is dead, as the coordinator would say."""

    worker_id: str
    epoch: int


class Order(Struct, frozen=True):
    """One of these; `probe`: compute something, and say whether that went well."""

    begin: Begin | None = None
    gone: Gone | None = None
    probe: bool = False


class Began(Struct, frozen=True):
    pass


class Told(Struct, frozen=True):
    """All transfers of the last `Begin` have settled, or the answer to a probe."""

    ok: bool
    error: str = ""
    quarantined: int = 0
    checksum: int = 0
    free_bytes: int = 0  # of the device, at a probe


def probe(device: str) -> Told:
    """A copy and a kernel on the device, and whether their result is right."""
    import torch  # noqa: PLC0415 - who only reads these messages has no use for it

    try:
        numbers = torch.arange(1 << 20, dtype=torch.float64, device=device)
        total = float((numbers.clone() + 1).sum().item())
        free = torch.cuda.mem_get_info(torch.device(device))[0] if device != "cpu" else 0
    except RuntimeError as error:  # torch.AcceleratorError is one: the context is lost
        return Told(ok=False, error=str(error).splitlines()[0])
    n = 1 << 20
    right = total == n * (n - 1) / 2 + n
    return Told(ok=right, error="" if right else f"a sum is {total}", free_bytes=free)


async def _transfer(port: KvPort, pool: Pool, begin: Begin, channel: Channel) -> None:
    regions = pool.regions(begin.nbytes, begin.nbytes)
    if begin.sends:
        outbound = [port.send(number, begin.peer, regions) for number in begin.transfer_ids]
        for transfer in outbound:
            transfer.finish(digests=b"", note=b"")
        ended = [(o.ok, o.error, o.quarantine) for o in [await transfer.settled() for transfer in outbound]]
    else:
        if begin.verify:
            pool.clear(begin.nbytes, begin.nbytes)
        inbound = [port.expect(number, begin.peer, regions) for number in begin.transfer_ids]
        channel.send(Began())
        ended = [(o.ok, o.error, o.quarantine) for o in [await transfer.settled() for transfer in inbound]]
    errors = [error for _, error, _ in ended if error]
    channel.send(
        Told(
            ok=all(ok for ok, _, _ in ended),
            error=errors[0] if errors else "",
            quarantined=sum(quarantine for _, _, quarantine in ended),
            checksum=pool.checksum(begin.nbytes, begin.nbytes) if begin.verify else 0,
        )
    )


async def _main(channel: Channel) -> None:
    opening = await channel.receive(Open)
    pool = Pool(opening.pool_bytes, opening.device)
    port = open_port(opening.worker_id, pool, SystemClock())
    probe(opening.device)  # so that no kernel is loaded for the first time when it counts
    channel.send(Opened(pid=os.getpid(), peer=port.peer))
    try:
        async with asyncio.TaskGroup() as tasks:
            transfers = []
            with suppress(ChildEnded):
                while True:
                    order = await channel.receive(Order)
                    if order.begin is not None:
                        transfers.append(tasks.create_task(_transfer(port, pool, order.begin, channel)))
                    if order.gone is not None:
                        port.peer_gone(order.gone.worker_id, order.gone.epoch)
                    if order.probe:
                        channel.send(probe(opening.device))
            for transfer in transfers:
                transfer.cancel()
    finally:
        port.close()


if __name__ == "__main__":
    serve(_main)
