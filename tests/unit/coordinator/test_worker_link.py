"""Who may join a cell, who is given up, and does the coordinator notice when its books do not agree with a worker's?

The worker of these tests is a bare socket.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
import zmq

from coordinator.service import Service
from coordinator.text import ByteText
from coordinator.worker_link import WorkerLink
from runtime.description import ModelInfo
from tests.support.cells import peer, pool
from tests.support.configs import coordinator_config
from tests.support.scripted_server import ManualClock
from transport import codec
from transport.control import new_context
from transport.messages.common import PROTOCOL_VERSION
from transport.messages.worker import (
    Beat,
    Heartbeat,
    Hello,
    Loading,
    Rejected,
    SelfTest,
    Shutdown,
    ToCoordinator,
    ToWorker,
    Welcome,
)

MODEL = ModelInfo(name="m", vocab_size=256, max_model_len=64, eos_token_ids=(4,))
CONFIG = coordinator_config(worker_timeout_s=4.0)


def hello(worker_id: str, *, epoch: int = 1, fingerprint: str = "same", protocol: int = PROTOCOL_VERSION) -> Hello:
    return Hello(
        protocol=protocol,
        role="prefill" if worker_id.startswith("p") else "decode",
        peer=peer(worker_id, epoch),
        pool=msgspec.structs.replace(pool(64), fingerprint=fingerprint),
        model=MODEL,
        max_batch=8,
        pid=4711,
    )


def beat(free: int, reserved: int = 0, quarantined: int = 0) -> Heartbeat:
    return Heartbeat(free_pages=free, reserved_pages=reserved, quarantined_pages=quarantined, running=0, waiting=0)


class Worker:
    """A socket that says what a test tells it to say."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.connect(endpoint)
        self._codec = codec.worker_side()

    def say(self, message: ToCoordinator) -> None:
        self.socket.send(self._codec.encode(message))

    async def hears(self) -> ToWorker:
        return self._codec.decode(await asyncio.to_thread(self.socket.recv))


class Bench:
    """A link with a real service behind it, and the workers that connect to it."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        self.clock = ManualClock()
        self.rejected: list[tuple[str, str]] = []
        self.loading: list[Loading] = []
        self._context = context
        self._endpoint = endpoint
        self._workers: list[Worker] = []
        self.link = WorkerLink(
            context, endpoint, 9, self.clock, self.loading.append, lambda *rejected: self.rejected.append(rejected)
        )
        self.service = Service(CONFIG, ByteText(), self.clock, self.link.tell)
        self.link.attach(self.service)

    def worker(self) -> Worker:
        self._workers.append(Worker(self._context, self._endpoint))
        return self._workers[-1]

    async def joined(self, name: str) -> Worker:
        worker = self.worker()
        worker.say(hello(name))
        assert isinstance(await worker.hears(), Welcome)
        return worker

    @property
    def names(self) -> list[str]:
        return sorted(self.service.machine.cell.workers)

    def close(self) -> None:
        self.link.close()
        for worker in self._workers:
            worker.socket.close(linger=0)


def play(tmp_path: Path, body: Callable[[Bench], Awaitable[None]]) -> list[BaseException]:
    """Run `body`; what a handler of the link raised in the loop."""
    raised: list[BaseException] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context["exception"]))
        bench = Bench(context, f"ipc://{tmp_path}/w")
        try:
            async with asyncio.timeout(20):
                await body(bench)
        finally:
            bench.close()

    context = new_context()
    try:
        asyncio.run(main())
    finally:
        context.destroy(linger=0)
    return raised


def test_a_worker_is_welcomed_and_joins(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        worker = bench.worker()
        worker.say(Loading(worker_id="d0", stage="weights"))
        worker.say(hello("d0"))
        assert await worker.hears() == Welcome(coordinator_epoch=9, heartbeat_s=0.5, timeout_s=4.0)
        assert bench.names == ["d0"]
        assert [loading.stage for loading in bench.loading] == ["weights"]
        assert bench.service.model == MODEL
        bench.link.beat()
        assert await worker.hears() == Beat()
        bench.link.shut_down()
        assert await worker.hears() == Shutdown()

    assert play(tmp_path, body) == []


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (hello("p0", protocol=PROTOCOL_VERSION + 1), "protocol"),
        (hello("p0", fingerprint="another"), "KV layout differs from that of d0"),
        (msgspec.structs.replace(hello("p0"), model=msgspec.structs.replace(MODEL, name="n")), "serves"),
    ],
)
def test_a_worker_that_does_not_fit_is_rejected_with_the_reason(tmp_path: Path, other: Hello, why: str) -> None:
    async def body(bench: Bench) -> None:
        await bench.joined("d0")
        stranger = bench.worker()
        stranger.say(other)
        answer = await stranger.hears()
        assert isinstance(answer, Rejected)
        assert why in answer.reason
        assert bench.rejected == [("p0", answer.reason)]
        assert bench.names == ["d0"]

    assert play(tmp_path, body) == []


def test_two_workers_are_linked_over_their_own_connections(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        decode, prefill = await bench.joined("d0"), await bench.joined("p0")
        for worker, other in ((decode, "p0"), (prefill, "d0")):
            test = await worker.hears()
            assert isinstance(test, SelfTest)
            assert test.peer == peer(other)

    assert play(tmp_path, body) == []


def test_a_silent_worker_is_given_up_and_its_late_words_are_ignored(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        quiet, lively = await bench.joined("d0"), await bench.joined("d1")
        bench.clock.time += 3.0
        lively.say(beat(64))
        while not bench.link.status():  # noqa: ASYNC110 - the beat is on its way through the kernel
            await asyncio.sleep(0.001)
        bench.clock.time += 1.5
        assert bench.link.expired(bench.clock.time) == ["d0"]
        assert bench.names == ["d1"]
        quiet.say(beat(1))  # wrong, too
        quiet.say(Loading(worker_id="d0", stage="to say something that is heard"))
        while not bench.loading:  # noqa: ASYNC110 - likewise
            await asyncio.sleep(0.001)
        assert [status.worker_id for status in bench.link.status()] == ["d1"]

    assert play(tmp_path, body) == []


def test_a_restarted_worker_replaces_its_older_self(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        await bench.joined("d0")
        again = bench.worker()
        again.say(hello("d0", epoch=2))
        assert isinstance(await again.hears(), Welcome)
        assert bench.service.machine.cell.workers["d0"].peer.epoch == 2

    assert play(tmp_path, body) == []


def test_a_worker_that_speaks_nonsense_does_not_go_on_as_a_worker(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        worker = await bench.joined("d0")
        worker.socket.send(b"nonsense")
        answer = await worker.hears()
        assert isinstance(answer, Rejected)
        assert bench.names == []

    assert play(tmp_path, body) == []


def test_a_worker_that_dies_behind_its_hello_never_joins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would ever report its loss, and its next incarnation would join twice."""

    async def body(bench: Bench) -> None:
        worker = bench.worker()
        gone = "it does not take its messages"
        monkeypatch.setattr(bench.link, "tell", lambda worker_id, _: bench.link.lost(worker_id, gone))
        worker.say(hello("d0"))
        worker.say(Loading(worker_id="d0", stage="to say something that is heard"))
        while not bench.loading:  # noqa: ASYNC110 - it is on its way through the kernel
            await asyncio.sleep(0.001)
        assert bench.names == []

    assert play(tmp_path, body) == []


# --- conservation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("heartbeat", "error"),
    [
        (beat(64), None),
        (beat(60, 4), "60 free pages, its credits say 64"),
        (beat(63), "accounts for 63 of its 64 pages"),
        (beat(64, 1), "accounts for 65 of its 64 pages"),
    ],
)
def test_pages_that_are_lost_break_an_invariant(tmp_path: Path, heartbeat: Heartbeat, error: str | None) -> None:
    async def body(bench: Bench) -> None:
        worker = await bench.joined("d0")
        worker.say(heartbeat)
        while not bench.link.status():  # noqa: ASYNC110 - it is on its way through the kernel
            await asyncio.sleep(0.001)
        await asyncio.sleep(0)

    raised = play(tmp_path, body)
    assert [type(one) for one in raised] == ([AssertionError] if error else [])
    assert error is None or error in str(raised[0])


def test_pages_of_a_test_under_way_are_not_lost(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        decode = await bench.joined("d0")
        await bench.joined("p0")
        assert isinstance(await decode.hears(), SelfTest)
        decode.say(beat(64))  # it had not heard of the test yet
        while not bench.link.status():  # noqa: ASYNC110 - it is on its way through the kernel
            await asyncio.sleep(0.001)
        await asyncio.sleep(0)

    assert play(tmp_path, body) == []
