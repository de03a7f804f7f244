"""Does the hand-off outlive its peer, and its own end, over both wires?"""

import asyncio

import pytest

from tests.support.handoff import Memory, network, run
from tests.support.kv_network import (
    LANDING,
    RUNS,
    TOTAL,
    WIRES,
    outcomes,
    pair,
    whatever_is_under_way,
)


@WIRES
@pytest.mark.parametrize("stage", ["offered", "agreed", "moving", "all sent"])
@pytest.mark.parametrize("survivor", ["prefill", "decode"])
def test_the_loss_of_the_peer_ends_its_transfers(kind: str, uv: bool, stage: str, survivor: str) -> None:
    """The peer is silent from the stage on, as a killed one is, and then reported."""

    async def main() -> None:
        async with network(kind) as net:
            ports = pair(net)
            source, target = Memory(RUNS, seed=1), Memory(LANDING)
            if survivor == "decode":
                inbound = ports.expect(1, target)
                if stage != "offered":
                    outbound = ports.send(1, source)
                    await whatever_is_under_way(kind)
                    outbound.push({"moving": 30_000, "all sent": TOTAL}.get(stage, 0))
                    await whatever_is_under_way(kind)
                ports.decode.peer_gone("prefill", 1)
                async with asyncio.timeout(0.8):  # less than the grace
                    received = await inbound.settled()
                assert (received.ok, received.error) == (False, "worker prefill is gone")
                assert not received.quarantine
            else:
                outbound = ports.send(1, source)
                if stage != "offered":
                    ports.expect(1, target)
                    await whatever_is_under_way(kind)
                    outbound.push({"moving": 30_000, "all sent": TOTAL}.get(stage, 0))
                ports.prefill.peer_gone("decode", 1)
                async with asyncio.timeout(0.8):
                    sent = await outbound.settled()
                assert (sent.ok, sent.error) == (False, "worker decode is gone")
                assert not sent.quarantine
            ports.prefill.close()
            ports.decode.close()

    run(main, uv=uv)


@WIRES
def test_a_restarted_worker_is_another_peer(kind: str, uv: bool) -> None:
    async def main() -> None:
        async with network(kind) as net:
            prefill, old, new = net.port("prefill"), net.port("decode", epoch=1), net.port("decode", epoch=2)
            lost = prefill.send(1, old.peer, Memory(RUNS, seed=1).regions)
            prefill.peer_gone("decode", 1)
            assert not (await lost.settled()).ok
            source, target = Memory(RUNS, seed=2), Memory(LANDING)
            inbound = new.expect(2, prefill.peer, target.regions)
            outbound = prefill.send(2, new.peer, source.regions)
            outbound.finish(b"", b"")
            sent, received = await outcomes(outbound, inbound)
            assert sent.ok
            assert received.ok
            assert target.bytes() == source.bytes()
            again = prefill.send(3, old.peer, source.regions)
            assert (await again.settled()).error == "worker decode cannot be reached"

    run(main, uv=uv)


@WIRES
def test_greeting_a_peer_is_not_a_transfer(kind: str, uv: bool) -> None:
    async def main() -> None:
        async with network(kind) as net:
            ports = pair(net)
            ports.prefill.connect(ports.decode.peer)
            ports.decode.connect(ports.prefill.peer)
            ports.prefill.connect(ports.decode.peer)
            await whatever_is_under_way(kind)
            assert ports.prefill.stale_messages == ports.decode.stale_messages == 0
            name = ports.prefill.transport_name(ports.decode.peer)
            assert name in (["loopback"] if kind == "loopback" else ["tcp", "self"])

    run(main, uv=uv)


@WIRES
def test_closing_a_port_settles_what_is_under_way(kind: str, uv: bool) -> None:
    async def main() -> None:
        async with network(kind) as net:
            ports = pair(net)
            inbound = [ports.expect(i, Memory(LANDING)) for i in range(3)]
            outbound = [ports.send(i, Memory(RUNS, seed=1)) for i in range(2)]
            await whatever_is_under_way(kind)
            outbound[0].push(30_000)
            ports.decode.close()
            ports.prefill.close()
            async with asyncio.timeout(1):
                received = [await transfer.settled() for transfer in inbound]
                sent = [await transfer.settled() for transfer in outbound]
            ends = {(outcome.ok, outcome.error) for outcome in received}
            ends |= {(outcome.ok, outcome.error) for outcome in sent}
            assert ends == {(False, "this worker is closing")}

    run(main, uv=uv)
