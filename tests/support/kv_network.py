"""What do the hand-off's contract tests share: two ports on either wire, and what they move?"""

import asyncio
from dataclasses import dataclass

import pytest

from tests.support.handoff import Memory, Network
from transport.kv import Inbound, KvPort, Outbound, ReceiveOutcome, SendOutcome

WIRES = pytest.mark.parametrize(("kind", "uv"), [("loopback", False), ("ucx", False), ("ucx", True)])
ABORTS = ["before expect", "before any page", "in the middle", "when all is ready", "after the end"]

RUNS = [3000, 20_000, 100, 9000, 50_000]
LANDING = [50_000, 32_100]
TOTAL = sum(RUNS)


@dataclass
class Pair:
    """A prefill and a decode port that know of each other."""

    prefill: KvPort
    decode: KvPort

    def send(self, transfer_id: int, memory: Memory) -> Outbound:
        return self.prefill.send(transfer_id, self.decode.peer, memory.regions)

    def expect(self, transfer_id: int, memory: Memory) -> Inbound:
        return self.decode.expect(transfer_id, self.prefill.peer, memory.regions)


def pair(net: Network, piece_bytes: int = 8192) -> Pair:
    return Pair(net.port("prefill", piece_bytes=piece_bytes), net.port("decode", piece_bytes=piece_bytes))


async def outcomes(outbound: Outbound, inbound: Inbound) -> tuple[SendOutcome, ReceiveOutcome]:
    async with asyncio.timeout(8):  # less than any deadline of the ports: everything here ends without one
        return await outbound.settled(), await inbound.settled()


async def whatever_is_under_way(kind: str) -> None:
    await asyncio.sleep(0.001 if kind == "loopback" else 0.03)
