"""Do both wires keep the promises of `transport.wire`?"""

import asyncio
import os
import time

import numpy as np
import pytest
from ucxx._lib.arr import Array  # type: ignore[import-untyped]  # UCXX has no type information

from runtime.buffers import MemoryKind, Region
from tests.support.handoff import Memory, Network, network, run, turns
from transport.errors import PeerLost, TransferFailed
from transport.ucx import as_buffer
from transport.wire import Link

WIRES = pytest.mark.parametrize(("kind", "uv"), [("loopback", False), ("ucx", False), ("ucx", True)])
UCX = pytest.mark.parametrize(("kind", "uv"), [("ucx", False), ("ucx", True)])


def pair(net: Network) -> tuple[Link, Link]:
    """A link each way between two new wires; the second wire's control messages are ignored."""
    one, other = net.wire(), net.wire()
    return one.connect(other.address), other.connect(one.address)


@WIRES
@pytest.mark.parametrize("nbytes", [1, 100, 5000, 9000, 1_000_000])
def test_a_message_goes_into_the_memory_that_was_posted_for_it(kind: str, uv: bool, nbytes: int) -> None:
    async def main() -> None:
        async with network(kind) as net:
            there, back = pair(net)
            source, target = Memory([nbytes], seed=1), Memory([nbytes])
            received = back.recv(7, target.regions[0])
            await there.send(7, source.regions[0])
            await received
            assert target.bytes() == source.bytes()
            assert target.gaps_untouched()

    run(main, uv=uv)


@WIRES
@pytest.mark.parametrize("nbytes", [1, 5000, 1_000_000])
def test_a_message_waits_for_its_receive(kind: str, uv: bool, nbytes: int) -> None:
    async def main() -> None:
        async with network(kind) as net:
            there, back = pair(net)
            source, target = Memory([nbytes], seed=1), Memory([nbytes])
            sent = there.send(7, source.regions[0])
            await net.quiet()
            await back.recv(7, target.regions[0])
            await sent
            assert target.bytes() == source.bytes()

    run(main, uv=uv)


@WIRES
def test_only_the_tag_decides_which_receive_gets_a_message(kind: str, uv: bool) -> None:
    async def main() -> None:
        async with network(kind) as net:
            there, back = pair(net)
            tags = [(transfer << 20) | piece for transfer in (1, 2, (1 << 40) - 1) for piece in (0, 1, (1 << 20) - 1)]
            sources = {tag: Memory([3000], seed=i) for i, tag in enumerate(tags)}
            targets = {tag: Memory([3000]) for tag in tags}
            received = [back.recv(tag, targets[tag].regions[0]) for tag in tags]
            await asyncio.gather(*(there.send(tag, sources[tag].regions[0]) for tag in reversed(tags)), *received)
            assert all(targets[tag].bytes() == sources[tag].bytes() for tag in tags)

    run(main, uv=uv)


@WIRES
def test_a_receive_is_not_held_up_by_another_that_waits(kind: str, uv: bool) -> None:
    async def main() -> None:
        async with network(kind) as net:
            there, back = pair(net)
            memory = Memory([100, 100, 100], seed=1)
            waiting = back.recv(1 << 20, memory.regions[0])
            received = back.recv(1 << 20 | 1, memory.regions[1])
            await there.send(1 << 20 | 1, memory.regions[2])
            await received
            assert not waiting.done()
            await there.send(1 << 20, memory.regions[2])
            await waiting

    run(main, uv=uv)


@WIRES
@pytest.mark.parametrize("nbytes", [100, 1_000_000])
def test_a_shorter_message_ends_the_receive_and_touches_no_more(kind: str, uv: bool, nbytes: int) -> None:
    async def main() -> None:
        async with network(kind) as net:
            there, back = pair(net)
            source, target = Memory([1], seed=1), Memory([nbytes])
            received = back.recv(7, target.regions[0])
            await there.send(7, source.regions[0])
            await received
            assert target.bytes() == source.bytes() + bytes(nbytes - 1)

    run(main, uv=uv)


@WIRES
@pytest.mark.parametrize("nbytes", [2, 5000, 1_000_000])
@pytest.mark.parametrize("early", [False, True])
def test_a_longer_message_fails_the_receive_and_ends_the_send(kind: str, uv: bool, nbytes: int, early: bool) -> None:
    async def main() -> None:
        async with network(kind) as net:
            there, back = pair(net)
            source, target = Memory([nbytes], seed=1), Memory([1])
            if early:
                sent = there.send(7, source.regions[0])
                await net.quiet()
                received = back.recv(7, target.regions[0])
            else:
                received = back.recv(7, target.regions[0])
                sent = there.send(7, source.regions[0])
            with pytest.raises(TransferFailed):
                await received
            await sent
            assert target.gaps_untouched()

    run(main, uv=uv)


@WIRES
def test_control_messages_arrive_whole_and_in_order(kind: str, uv: bool) -> None:
    async def main() -> None:
        async with network(kind) as net:
            one, other, listener = net.wire(), net.wire(), net.wire()
            heard: list[bytes] = []
            listener.on_control(heard.append)
            links = {b"1": one.connect(listener.address), b"2": other.connect(listener.address)}
            sizes = [10, 200_000, 1, 9000, 50, 2_000_000, 3, 8192]
            said = [name + bytes([i]) * size for i, size in enumerate(sizes) for name in links]
            for message in said:
                links[message[:1]].send_control(message)
            async with asyncio.timeout(5):
                while len(heard) < len(said):  # noqa: ASYNC110 - the wire calls back, it sets no event
                    await asyncio.sleep(0.001)
            for name in links:
                assert [m for m in heard if m[:1] == name] == [m for m in said if m[:1] == name]

    run(main, uv=uv)


@WIRES
def test_control_and_data_do_not_take_each_other(kind: str, uv: bool) -> None:
    async def main() -> None:
        async with network(kind) as net:
            one, other = net.wire(), net.wire()
            heard: asyncio.Queue[bytes] = asyncio.Queue()
            other.on_control(heard.put_nowait)
            there, back = one.connect(other.address), other.connect(one.address)
            source, target = Memory([100], seed=1), Memory([100])
            received = back.recv(0, target.regions[0])
            there.send_control(b"word")
            assert await heard.get() == b"word"
            assert not received.done()
            await there.send(0, source.regions[0])
            await received
            assert target.bytes() == source.bytes()

    run(main, uv=uv)


@WIRES
def test_many_small_messages(kind: str, uv: bool) -> None:
    async def main() -> None:
        async with network(kind) as net:
            there, back = pair(net)
            runs = [4096] * 1500
            source, target = Memory(runs, seed=1), Memory(runs)
            received = [back.recv(i, region) for i, region in enumerate(target.regions)]
            await asyncio.gather(*(there.send(i, region) for i, region in enumerate(source.regions)), *received)
            assert target.bytes() == source.bytes()

    run(main, uv=uv)


@WIRES
def test_closing_a_link_ends_what_is_pending_and_frees_its_memory(kind: str, uv: bool) -> None:
    async def main() -> None:
        async with network(kind) as net:
            there, back = pair(net)
            source, target = Memory([1_000_000], seed=1), Memory([1_000_000] * 3)
            sent = there.send(99, source.regions[0])  # finds no receive
            received = [back.recv(i, region) for i, region in enumerate(target.regions)]
            await net.quiet()
            there.close()
            back.close()
            for future in (sent, *received):
                with pytest.raises(PeerLost):
                    await future
            target.fill(1)
            again = net.wires[0].connect(net.wires[1].address)  # one that does not know that it was given up
            late = [again.send(i, source.regions[0]) for i in range(3)]
            await net.quiet()
            assert target.bytes() == b"\1" * 3_000_000
            again.close()
            await asyncio.gather(*late, return_exceptions=True)

    run(main, uv=uv)


@WIRES
def test_a_closed_link_takes_nothing_more(kind: str, uv: bool) -> None:
    async def main() -> None:
        async with network(kind) as net:
            there, _ = pair(net)
            memory = Memory([10, 10])
            there.close()
            there.close()
            there.send_control(b"word")
            for future in (there.send(1, memory.regions[0]), there.recv(2, memory.regions[1])):
                with pytest.raises(PeerLost):
                    await future

    run(main, uv=uv)


@WIRES
def test_a_closed_wire_leaves_no_future_behind(kind: str, uv: bool) -> None:
    async def main() -> None:
        async with network(kind) as net:
            there, back = pair(net)
            memory = Memory([10, 1_000_000])
            pending = [back.recv(1, memory.regions[0]), there.send(2, memory.regions[1])]
            await turns()
            for wire in net.wires:
                wire.close()
                wire.close()
            for future in pending:
                with pytest.raises(PeerLost):
                    await future

    run(main, uv=uv)


@UCX
def test_64_megabytes_arrive_fast(kind: str, uv: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Both ends share one thread here, so each byte costs two copies in turn; between processes it is faster."""

    async def main() -> None:
        async with network(kind) as net:
            there, back = pair(net)
            source, target = Memory([64 << 20], seed=1), Memory([64 << 20])
            best_s = float("inf")
            for tag in range(3):
                target.fill(0)
                received = back.recv(tag, target.regions[0])
                started = time.perf_counter()
                await there.send(tag, source.regions[0])
                await received
                best_s = min(best_s, time.perf_counter() - started)
            assert target.bytes() == source.bytes()
            rate, copy_rate = (64 << 20) / best_s / 1e9, memcpy_gigabytes_per_s()
            with capsys.disabled():
                print(f"\n{rate:.1f} GB/s in one process (memcpy {copy_rate:.1f})")  # noqa: T201 - the reader's figure
            assert rate > 0.5

    run(main, uv=uv)


def memcpy_gigabytes_per_s() -> float:
    source, target = np.ones(64 << 20, np.uint8), np.zeros(64 << 20, np.uint8)
    started = time.perf_counter()
    target[:] = source
    return (64 << 20) / (time.perf_counter() - started) / 1e9


@UCX
def test_idle_costs_nothing(kind: str, uv: bool) -> None:
    """Two wires, connected and used before, with receives posted."""

    async def main() -> None:
        async with network(kind) as net:
            there, back = pair(net)
            memory = Memory([100_000] * 200)
            received = [back.recv(i, region) for i, region in enumerate(memory.regions[1:])]
            await there.send(0, memory.regions[0])
            await received[0]
            await asyncio.sleep(0.2)
            before_s = time.process_time()
            await asyncio.sleep(1.0)
            assert time.process_time() - before_s < 0.01
            there.close()
            back.close()
            await asyncio.gather(*received, return_exceptions=True)

    run(main, uv=uv)


@WIRES
def test_the_transport_has_a_name_once_it_was_used(kind: str, uv: bool) -> None:
    async def main() -> None:
        async with network(kind) as net:
            one, other = net.wire(), net.wire()
            there, back = one.connect(other.address), other.connect(one.address)
            memory = Memory([100_000, 100_000])
            received = back.recv(0, memory.regions[0])
            await there.send(0, memory.regions[1])
            await received
            name = one.describe(there)
            assert name in (["loopback"] if kind == "loopback" else ["tcp", "self"])
            there.close()
            assert one.describe(there) in ("loopback", "unknown")

    run(main, uv=uv)


def test_loopback_knows_who_is_there() -> None:
    async def main() -> None:
        async with network("loopback") as net:
            with pytest.raises(PeerLost):
                net.wire().connect(b"nobody")

    run(main)


def test_ucx_does_not_depend_on_stray_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not read and stay what they were; the two for operators count."""

    async def main() -> None:
        monkeypatch.setenv("UCX_RNDV_THRESH", "nonsense")
        async with network("ucx") as net:
            pair(net)
        assert os.environ["UCX_RNDV_THRESH"] == "nonsense"
        monkeypatch.setenv("UCX_TLS", "self")  # reaches nobody else
        async with network("ucx") as net:
            with pytest.raises(PeerLost):
                pair(net)

    run(main)


def test_memory_goes_to_ucxx_without_a_copy() -> None:
    memory = Memory([100], seed=1)
    view = as_buffer(memory.regions[0])
    assert isinstance(view, memoryview)
    assert view.tobytes() == memory.bytes()
    view[0:1] = b"\0"
    assert memory.bytes()[0] == 0
    gpu = Array(as_buffer(Region(0x7000_0000_0000, 4096, MemoryKind.CUDA, device=1)))
    assert (gpu.cuda, gpu.nbytes) == (True, 4096)
