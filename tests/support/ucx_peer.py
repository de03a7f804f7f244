"""What do the processes do that tests kill in the middle of a hand-off?

Each runs one KV port over UCX and obeys the test through a pipe: commands in, answers out, all msgpack.
"""

import asyncio
import time
from multiprocessing.connection import Connection
from typing import Literal

import msgspec
import uvloop
from msgspec import Struct

from runtime.clock import SystemClock
from tests.support.handoff import Memory
from transport.kv import Inbound, KvPort, Outbound
from transport.messages.common import KvPeer
from transport.ucx import UcxWire

RUNS = [1_000_000] * 32
"""32 MB a transfer: some milliseconds."""

PATTERN = 0x5A


class Start(Struct, tag=True):
    """Begin these transfers with `peer`; the prefill side pushes half of each, or all and `finish`."""

    peer: KvPeer
    transfer_ids: list[int]
    finish: bool


class Finish(Struct, tag=True):
    """Push the rest of the transfers of the last Start."""


class PeerGone(Struct, tag=True):
    """`report`: say so to the port. Then answer with the outcomes."""

    report: bool


class Outcomes(Struct):
    """What became of the transfers of the last Start.

    `gone_s`: how long `KvPort.peer_gone` kept the loop. `settled_s`: command -> last transfer settled.
    """

    ok: int
    failed: int
    quarantined: int
    gone_s: float
    settled_s: float
    errors: list[str]


class Paint(Struct, tag=True):
    """Fill the pages of the last Start."""


class AskPainted(Struct, tag=True):
    """Whether the pages are still as they were painted."""


class Leave(Struct, tag=True):
    """Close the port and end."""


Command = Start | Finish | PeerGone | Paint | AskPainted | Leave


class Peer:
    def __init__(self, role: Literal["prefill", "decode"], epoch: int, connection: Connection) -> None:
        self._role = role
        self._connection = connection
        self._commands: asyncio.Queue[Command] = asyncio.Queue()
        self._decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
        asyncio.get_running_loop().add_reader(connection.fileno(), self._read)
        self._port = KvPort(
            UcxWire(),
            worker_id=role,
            epoch=epoch,
            fingerprint="f",
            host_id="host",
            clock=SystemClock(),
            piece_bytes=4 << 20,
            timeout_s=20.0,
        )
        self._peer: KvPeer | None = None
        self._memory: list[Memory] = []
        self._transfers: list[Outbound | Inbound] = []
        self._old: list[Memory] = []  # UCX may still read what a finished transfer has sent; it lives as long as we do

    async def obey(self) -> None:
        self._say(self._port.peer)
        while True:
            match await self._commands.get():
                case Start() as start:
                    await self._start(start)
                case Finish():
                    for transfer in self._transfers:
                        if isinstance(transfer, Outbound):
                            transfer.finish(b"", b"")
                    self._say(True)
                case PeerGone(report):
                    self._say(await self._outcomes(report))
                case Paint():
                    for memory in self._memory:
                        memory.fill(PATTERN)
                    self._say(True)
                case AskPainted():
                    self._say(all(set(memory.bytes()) == {PATTERN} for memory in self._memory))
                case Leave():
                    self._port.close()
                    return

    async def _start(self, start: Start) -> None:
        self._old += self._memory
        self._peer = start.peer
        self._port.connect(start.peer)
        if self._role == "decode":
            self._memory = [Memory(RUNS) for _ in start.transfer_ids]
            pairs = zip(start.transfer_ids, self._memory, strict=True)
            self._transfers = [self._port.expect(i, start.peer, memory.regions) for i, memory in pairs]
            self._say(True)
            return
        self._memory = [Memory(RUNS, seed=i) for i in start.transfer_ids]
        self._say(True)
        self._transfers = []
        for transfer_id, memory in zip(start.transfer_ids, self._memory, strict=True):
            outbound = self._port.send(transfer_id, start.peer, memory.regions)
            self._transfers.append(outbound)
            outbound.push(sum(RUNS) // 2)
            if start.finish:
                outbound.finish(b"", b"")
            await asyncio.sleep(0)

    async def _outcomes(self, report: bool) -> Outcomes:
        assert self._peer is not None
        started = time.perf_counter()
        if report:
            self._port.peer_gone(self._peer.worker_id, self._peer.epoch)
        gone_s = time.perf_counter() - started
        outcomes = [await transfer.settled() for transfer in self._transfers]
        return Outcomes(
            ok=sum(outcome.ok for outcome in outcomes),
            failed=sum(not outcome.ok for outcome in outcomes),
            quarantined=sum(outcome.quarantine for outcome in outcomes),
            gone_s=gone_s,
            settled_s=time.perf_counter() - started,
            errors=[outcome.error for outcome in outcomes if outcome.error is not None],
        )

    def _read(self) -> None:
        self._commands.put_nowait(self._decoder.decode(self._connection.recv_bytes()))

    def _say(self, answer: object) -> None:
        self._connection.send_bytes(msgspec.msgpack.encode(answer))


def main(role: Literal["prefill", "decode"], epoch: int, connection: Connection) -> None:
    """The body of a process."""

    async def live() -> None:
        await Peer(role, epoch, connection).obey()

    uvloop.run(live())
