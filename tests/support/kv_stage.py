"""What does a scripted hand-off look like: two ports, their pages, a clock and a wire with faults?"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.support.handoff import OFFER_TIMEOUT_S, TIMEOUT_S, Memory, VirtualClock, network, run, turns
from transport.kv import Inbound, KvPort, Outbound
from transport.loopback import Faults, LoopbackHub

RUNS = [3000, 20_000, 100, 9000, 50_000]
LANDING = [50_000, 32_100]
TOTAL = sum(RUNS)
PIECES = 16
FAR = 10 * (TIMEOUT_S + OFFER_TIMEOUT_S)


@dataclass
class Stage:
    """A prefill and a decode port, what they move, and who decides when."""

    hub: LoopbackHub
    clock: VirtualClock
    prefill: KvPort
    decode: KvPort
    source: Memory
    target: Memory

    def send(self, transfer_id: int = 1) -> Outbound:
        return self.prefill.send(transfer_id, self.decode.peer, self.source.regions)

    def expect(self, transfer_id: int = 1) -> Inbound:
        return self.decode.expect(transfer_id, self.prefill.peer, self.target.regions)

    async def both(self) -> tuple[Outbound, Inbound]:
        """A transfer that both sides have agreed on."""
        outbound, inbound = self.send(), self.expect()
        await turns()
        return outbound, inbound

    @property
    def unmatched(self) -> int:
        """Messages and receives without a partner."""
        return sum(wire.unmatched for wire in self.hub.wires)

    @property
    def forgotten(self) -> bool:
        return self.prefill.transfers == self.decode.transfers == 0


def staged(play: Callable[[Stage], Awaitable[None]], faults: Faults | None = None, *, collect: bool = True) -> None:
    async def main() -> None:
        async with network("loopback", faults) as net:
            clock = VirtualClock()
            prefill, decode = net.port("prefill", clock=clock), net.port("decode", clock=clock)
            await play(Stage(net.hub, clock, prefill, decode, Memory(RUNS, seed=1), Memory(LANDING)))

    run(main, collect=collect)


async def now(transfer: Outbound | Inbound) -> bool:
    """Whether it has settled."""
    await turns()
    settled = asyncio.ensure_future(transfer.settled())
    await turns()
    return settled.done() or not settled.cancel()
