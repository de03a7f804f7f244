"""What do tests of the hand-off need: a clock that they move, memory that they check, a loop that notices leaks."""

import asyncio
import gc
import heapq
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import numpy as np
import uvloop
from numpy.typing import NDArray

from runtime.buffers import Region
from runtime.clock import Clock, SystemClock
from transport.kv import KvPort
from transport.loopback import Faults, LoopbackHub
from transport.ucx import UcxWire
from transport.wire import Wire

TIMEOUT_S = 10.0
OFFER_TIMEOUT_S = 100.0
GAP_BYTES = 64
UNTOUCHED = 0xEE


class VirtualClock:
    """Time passes only when a test says so."""

    def __init__(self) -> None:
        self._now = 0.0
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        woken = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), woken))
        await woken

    def pass_unnoticed(self, seconds: float) -> None:
        """As while somebody computes: nobody is woken."""
        self._now += seconds

    async def advance(self, seconds: float) -> None:
        """Let `seconds` pass, waking each sleeper at its time."""
        end = self._now + seconds
        await turns()
        while self._sleepers and self._sleepers[0][0] <= end:
            at, _, woken = heapq.heappop(self._sleepers)
            self._now = max(self._now, at)
            if not woken.done():
                woken.set_result(None)
            await turns()
        self._now = max(self._now, end)


async def turns(count: int = 60) -> None:
    """Let everything happen that does not wait for time or for another process."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another thread of events brings about, at its own pace.

    Raises:
        AssertionError: it does not come.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + 10.0
    while not condition():
        assert loop.time() < deadline
        await asyncio.sleep(0.001)


class Memory:
    """Runs of host memory in any order, with gaps between them that nobody may write to."""

    def __init__(self, runs: Sequence[int], seed: int | None = None) -> None:
        """With a `seed` the runs hold random bytes, without it zeros."""
        starts, at = {}, GAP_BYTES
        for index in random.Random(len(runs)).sample(range(len(runs)), len(runs)):
            starts[index] = at
            at += runs[index] + GAP_BYTES
        self._array: NDArray[np.uint8] = np.full(at, UNTOUCHED, np.uint8)
        self._runs = [slice(starts[index], starts[index] + length) for index, length in enumerate(runs)]
        base = int(self._array.ctypes.data)
        self.regions = tuple(Region(base + run.start, run.stop - run.start) for run in self._runs)
        draw = np.random.default_rng(seed)
        for run in self._runs:
            length = run.stop - run.start
            self._array[run] = draw.integers(0, 256, length, np.uint8) if seed is not None else 0

    def bytes(self) -> bytes:
        """All runs in the order of the transfer."""
        return b"".join(self._array[run].tobytes() for run in self._runs)

    def fill(self, value: int) -> None:
        for run in self._runs:
            self._array[run] = value

    def gaps_untouched(self) -> bool:
        outside = np.ones(self._array.shape, bool)
        for run in self._runs:
            outside[run] = False
        return bool((self._array[outside] == UNTOUCHED).all())


def run(main: Callable[[], Awaitable[None]], *, uv: bool = False, collect: bool = True) -> None:
    """Run a test on a fresh loop; `collect` garbage, so that futures in cycles can complain too.

    Raises:
        AssertionError: it left a task behind, or something failed that nobody looked at.
    """

    async def guarded() -> None:
        unseen: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
        async with asyncio.timeout(30):
            await main()
        await turns(5)
        if collect:
            gc.collect()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left
        assert not unseen, unseen

    (uvloop if uv else asyncio).run(guarded())


class Network:
    """Wires of one kind that reach each other."""

    def __init__(self, kind: str, faults: Faults | None = None) -> None:
        self.hub = LoopbackHub(faults)
        self._kind = kind
        self.wires: list[Wire] = []
        self._ports: list[KvPort] = []

    def wire(self) -> Wire:
        wire: Wire = self.hub.join() if self._kind == "loopback" else UcxWire()
        self.wires.append(wire)
        return wire

    def port(
        self,
        worker_id: str,
        epoch: int = 1,
        clock: Clock | None = None,
        *,
        fingerprint: str = "f",
        piece_bytes: int = 8192,
    ) -> KvPort:
        """A port with a wire of its own."""
        port = KvPort(
            self.wire(),
            worker_id=worker_id,
            epoch=epoch,
            fingerprint=fingerprint,
            host_id="host",
            clock=clock or SystemClock(),
            piece_bytes=piece_bytes,
            timeout_s=TIMEOUT_S,
            offer_timeout_s=OFFER_TIMEOUT_S,
        )
        self._ports.append(port)
        return port

    async def quiet(self) -> None:
        """Give whatever is under way the time to arrive."""
        if self._kind == "loopback":
            await turns()
        else:
            await asyncio.sleep(0.05)

    def close(self) -> None:
        for port in self._ports:
            port.close()
        for wire in self.wires:
            wire.close()


@asynccontextmanager
async def network(kind: str, faults: Faults | None = None) -> AsyncIterator[Network]:
    """A network whose ports and wires are closed at the end."""
    made = Network(kind, faults)
    try:
        yield made
    finally:
        made.close()
        await turns(5)
