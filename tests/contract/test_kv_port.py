"""Does the hand-off work the same over both wires?"""

import asyncio
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.handoff import Memory, network, run, until
from tests.support.kv_network import (
    ABORTS,
    LANDING,
    RUNS,
    TOTAL,
    WIRES,
    Pair,
    outcomes,
    pair,
    whatever_is_under_way,
)
from transport.kv import Inbound, Outbound, SendOutcome


def cut(total: int, cuts: list[int]) -> list[int]:
    """`total` as a sum of positive numbers, cut at `cuts` modulo `total`."""
    borders = sorted({cut % total for cut in cuts} - {0} | {total})
    return [end - start for start, end in zip([0, *borders], borders, strict=False)]


@pytest.mark.parametrize(("kind", "examples"), [("loopback", 150), ("ucx", 25)])
def test_bytes_arrive_exactly_for_any_runs(kind: str, examples: int) -> None:
    cuts = st.lists(st.integers(0, 1 << 20), max_size=30)

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        total=st.integers(1, 200_000),
        ours=cuts,
        theirs=cuts,
        pushes=cuts,
        piece=st.integers(500, 1 << 18),
        first=st.booleans(),
    )
    def check(total: int, ours: list[int], theirs: list[int], pushes: list[int], piece: int, first: bool) -> None:
        async def main() -> None:
            async with network(kind) as net:
                prefill, decode = net.port("prefill", piece_bytes=piece), net.port("decode", piece_bytes=10_000)
                source, target = Memory(cut(total, ours), seed=total), Memory(cut(total, theirs))
                inbound = decode.expect(1, prefill.peer, target.regions) if first else None
                outbound = prefill.send(1, decode.peer, source.regions)
                inbound = inbound or decode.expect(1, prefill.peer, target.regions)
                ready = 0
                for nbytes in cut(total, pushes):
                    ready += nbytes
                    outbound.push(ready)
                outbound.finish(b"digests", b"note")
                sent, received = await outcomes(outbound, inbound)
                assert sent.ok
                assert received.ok
                assert not sent.quarantine
                assert not received.quarantine
                assert (sent.nbytes, received.nbytes) == (total, total)
                assert (received.digests, received.note) == (b"digests", b"note")
                assert target.bytes() == source.bytes()
                assert target.gaps_untouched()
                assert prefill.stale_messages == decode.stale_messages == 0

        run(main, collect=False)

    check()


@WIRES
@pytest.mark.parametrize("first", ["expect", "send"])
def test_whoever_is_told_first_need_not_wait(kind: str, uv: bool, first: str) -> None:
    """The Offer, or the Landing, arrives before the other side's call."""

    async def main() -> None:
        async with network(kind) as net:
            ports = pair(net)
            source, target = Memory(RUNS, seed=1), Memory(LANDING)
            if first == "expect":
                inbound = ports.expect(1, target)
                await whatever_is_under_way(kind)
                outbound = ports.send(1, source)
            else:
                outbound = ports.send(1, source)
                outbound.finish(b"", b"")
                await whatever_is_under_way(kind)
                inbound = ports.expect(1, target)
            outbound.finish(b"", b"")
            sent, received = await outcomes(outbound, inbound)
            assert sent.ok
            assert received.ok
            assert target.bytes() == source.bytes()

    run(main, uv=uv)


def same_start(source: Memory, target: Memory, nbytes: int) -> bool:
    return target.bytes()[:nbytes] == source.bytes()[:nbytes]


@WIRES
def test_pages_leave_as_soon_as_they_are_ready_and_not_before(kind: str, uv: bool) -> None:
    async def main() -> None:
        async with network(kind) as net:
            ports = pair(net, piece_bytes=1000)
            source, target = Memory([10_000], seed=1), Memory([10_000])
            inbound = ports.expect(1, target)
            outbound = ports.send(1, source)
            for ready, arrived in ((999, 0), (1000, 1000), (1999, 1000), (7500, 7000)):
                outbound.push(ready)
                await arrival(source, target, arrived)
                await whatever_is_under_way(kind)
                assert target.bytes()[arrived:] == bytes(10_000 - arrived)
            outbound.finish(b"", b"")
            sent, _ = await outcomes(outbound, inbound)
            assert sent.pieces == 10
            assert 0 < sent.seconds < 5
            assert target.bytes() == source.bytes()

    run(main, uv=uv)


@WIRES
def test_transfers_at_the_same_time_do_not_mix(kind: str, uv: bool) -> None:
    async def main() -> None:
        async with network(kind) as net:
            decode = net.port("decode")
            prefills = [net.port("prefill-0"), net.port("prefill-1", epoch=7)]
            draw = random.Random(1)
            transfers = []
            for i in range(30):
                total = draw.randrange(1000, 60_000)
                runs = [cut(total, [draw.randrange(1 << 20) for _ in range(draw.randrange(20))]) for _ in range(2)]
                transfers.append((i, prefills[i % 2], Memory(runs[0], seed=i), Memory(runs[1])))
            inbound = [decode.expect(i, prefill.peer, target.regions) for i, prefill, _, target in transfers]
            outbound = [prefill.send(i, decode.peer, source.regions) for i, prefill, source, _ in transfers]
            await whatever_is_under_way(kind)
            for i in draw.sample(range(30), 30):
                outbound[i].push(draw.randrange(sum(region.nbytes for region in transfers[i][2].regions)))
            for i in draw.sample(range(30), 30):
                outbound[i].finish(b"%d" % i, b"")
            for i, (_, _, source, target) in enumerate(transfers):
                sent, received = await outcomes(outbound[i], inbound[i])
                assert sent.ok
                assert received.digests == b"%d" % i
                assert target.bytes() == source.bytes()

    run(main, uv=uv)


def test_many_pages_in_pieces_of_the_usual_size() -> None:
    """64 MB of pages of 360 KB, every other one elsewhere."""

    async def main() -> None:
        async with network("ucx") as net:
            ports = pair(net, piece_bytes=8 << 20)
            pages = [360 << 10] * 182
            source, target = Memory(pages, seed=1), Memory([sum(pages)])
            inbound = ports.expect(1, target)
            outbound = ports.send(1, source)
            outbound.finish(bytes(8 * len(pages)), b"")
            sent, received = await outcomes(outbound, inbound)
            assert received.ok
            assert sent.nbytes / sent.seconds > 0.2e9
            assert target.bytes() == source.bytes()

    run(main)


@WIRES
def test_a_refused_transfer_moves_nothing(kind: str, uv: bool) -> None:
    async def main() -> None:
        async with network(kind) as net:
            ports = pair(net)
            source = Memory(RUNS, seed=1)
            before = ports.send(1, source)
            ports.decode.refuse(1, ports.prefill.peer, "no room")
            ports.decode.refuse(2, ports.prefill.peer, "no room at all")
            await whatever_is_under_way(kind)
            after = ports.send(2, source)
            before.push(TOTAL)
            after.finish(b"", b"")
            async with asyncio.timeout(5):
                assert await before.settled() == SendOutcome(False, "no room", False, 0, 0, 0.0)
                assert await after.settled() == SendOutcome(False, "no room at all", False, 0, 0, 0.0)

    run(main, uv=uv)


@WIRES
@pytest.mark.parametrize("stage", ABORTS)
def test_an_aborted_transfer_settles_on_both_sides(kind: str, uv: bool, stage: str) -> None:
    async def main() -> None:
        async with network(kind) as net:
            ports = pair(net)
            source, target = Memory(RUNS, seed=1), Memory(LANDING)
            outbound, inbound = await aborted(kind, ports, stage, source, target)
            sent, received = await outcomes(outbound, inbound)
            assert (sent.quarantine, received.quarantine) == (False, False)
            if stage == "after the end":
                assert sent.ok
                assert received.ok
                assert target.bytes() == source.bytes()
            else:
                assert (sent.ok, sent.error) == (False, "cancelled")
                assert (received.ok, received.error) == (False, "cancelled")
                assert sent.nbytes == {"in the middle": 23_100, "when all is ready": TOTAL}.get(stage, 0)
            assert target.gaps_untouched()
            assert ports.prefill.stale_messages == ports.decode.stale_messages == 0

    run(main, uv=uv)


async def arrival(source: Memory, target: Memory, nbytes: int) -> None:
    await until(lambda: target.bytes()[:nbytes] == source.bytes()[:nbytes])


async def aborted(kind: str, ports: Pair, stage: str, source: Memory, target: Memory) -> tuple[Outbound, Inbound]:
    """A transfer that is taken back at some stage."""
    outbound = ports.send(1, source)
    if stage == "before expect":
        outbound.push(5000)
        outbound.abort("cancelled")
        await whatever_is_under_way(kind)
        return outbound, ports.expect(1, target)
    inbound = ports.expect(1, target)
    arrived = 0
    if stage == "in the middle":
        arrived = 23_100  # the last border of a piece before what is ready
        outbound.push(23_456)
    elif stage == "when all is ready":
        arrived = TOTAL
        outbound.push(TOTAL)
    elif stage == "after the end":
        arrived = TOTAL
        outbound.finish(b"", b"")
    await arrival(source, target, arrived)
    await whatever_is_under_way(kind)
    outbound.abort("cancelled")
    outbound.abort("and again")
    if stage != "after the end":
        outbound.finish(b"late", b"late")
    return outbound, inbound


@WIRES
def test_an_abort_that_crosses_the_landing_settles_on_both_sides(kind: str, uv: bool) -> None:
    async def main() -> None:
        async with network(kind) as net:
            ports = pair(net)
            target = Memory(LANDING)
            inbound = ports.expect(1, target)
            outbound = ports.send(1, Memory(RUNS, seed=1))
            outbound.abort("cancelled")
            sent, received = await outcomes(outbound, inbound)
            assert (sent.error, sent.quarantine, sent.nbytes) == ("cancelled", False, 0)
            assert (received.error, received.quarantine) == ("cancelled", False)

    run(main, uv=uv)


@WIRES
@pytest.mark.parametrize("first", ["expect", "send"])
def test_a_prompt_that_is_never_computed_is_declined(kind: str, uv: bool, first: str) -> None:
    async def main() -> None:
        async with network(kind) as net:
            ports = pair(net)
            target = Memory(LANDING)
            inbound = ports.expect(1, target) if first == "expect" else None
            if inbound is not None:
                await whatever_is_under_way(kind)
            outbound = ports.prefill.send(1, ports.decode.peer, ())
            outbound.abort("cancelled in the queue")
            await whatever_is_under_way(kind)
            inbound = inbound or ports.expect(1, target)
            sent, received = await outcomes(outbound, inbound)
            assert (sent.error, sent.quarantine) == ("cancelled in the queue", False)
            assert (received.error, received.quarantine) == ("cancelled in the queue", False)

    run(main, uv=uv)


@WIRES
def test_sides_with_different_sizes_fail_without_a_byte(kind: str, uv: bool) -> None:
    async def main() -> None:
        async with network(kind) as net:
            ports = pair(net)
            target = Memory([TOTAL - 1])
            inbound, outbound = ports.expect(1, target), ports.send(1, Memory(RUNS, seed=1))
            outbound.finish(b"", b"")
            sent, received = await outcomes(outbound, inbound)
            assert not sent.ok
            assert not received.ok
            assert (sent.quarantine, received.quarantine, sent.nbytes) == (False, False, 0)
            assert target.bytes() == bytes(TOTAL - 1)

    run(main, uv=uv)


@WIRES
@pytest.mark.parametrize("end", [*ABORTS, "whole", "decode is gone", "prefill is gone"])
def test_no_page_is_touched_after_the_end(kind: str, uv: bool, end: str) -> None:
    async def main() -> None:
        async with network(kind) as net:
            ports = pair(net)
            source, target = Memory(RUNS, seed=1), Memory(LANDING)
            if end in ABORTS:
                outbound, inbound = await aborted(kind, ports, end, source, target)
            else:
                inbound, outbound = ports.expect(1, target), ports.send(1, source)
                await whatever_is_under_way(kind)
                outbound.push(30_000)
                if end == "whole":
                    outbound.finish(b"", b"")
                else:  # each is told that the other is gone, while both live and go on
                    ports.prefill.peer_gone("decode", 1)
                    ports.decode.peer_gone("prefill", 1)
                    outbound.push(TOTAL)
                    outbound.finish(b"", b"")
            sent, received = await outcomes(outbound, inbound)
            assert (sent.quarantine, received.quarantine) == (False, False)
            target.fill(0x5A)
            source.fill(0xA5)
            await whatever_is_under_way(kind)
            await whatever_is_under_way(kind)
            assert target.bytes() == b"\x5a" * TOTAL
            assert source.bytes() == b"\xa5" * TOTAL

    run(main, uv=uv)
