"""Does the death of a peer in mid-transfer cost the survivor its GPU?

Senders and receivers are killed (`kill -9`) while gigabytes of pages are under way, at several moments. Asked of the
survivor each time: does it live, do its transfers settle, does its CUDA context still compute, is it served by a new
peer, with the right bytes, and does the driver give the memory of the dead one back? A mapping that a survivor keeps
would hold that, and the restarted worker would find no room.
"""

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import count, islice
from typing import Literal

import uvloop

from bench.child import Channel, ChildEnded, started
from bench.gpu.mortal import Began, Begin, Gone, Open, Opened, Order, Told
from bench.gpu.parts import Settings, Tell
from bench.rows import Row, summarise
from runtime.clock import SystemClock
from transport.messages.common import KvPeer

_MOMENTS = (0.05, 0.3, 0.6)
"""Of the time that the transfers take undisturbed."""

_PATIENCE_S = 15.0
_OPENING_S = 45.0
_VERIFIED_BYTES = 8 << 20
_FIRST = 2  # transfers that tell how many there can be
_MOST_S = 1.0  # that all take undisturbed, if so few can: through the host each takes a hundred times as long
_DRIVER_S = 3.0  # to clear up behind a process
_LOOK_S = 0.25
_GIVEN_BACK = 0.9  # of a pool; other processes may allocate meanwhile

LIVES = "survivor lives"
SETTLES = "its transfers settle"
COMPUTES = "its device computes"
SERVED = "a new peer is served"
MEMORY = "the dead peer's memory is back"
_QUESTIONS = {
    LIVES: "an abort in foreign code would be 0",
    SETTLES: "0: they were still pending when this check lost patience, or pages had to be quarantined",
    COMPUTES: "a copy and a kernel, with the right result; 0: its CUDA context is lost",
    SERVED: "the next transfer, with another process, checked by its bytes",
    MEMORY: "0: the survivor, or the driver, still holds it",
}

Killed = Literal["sender", "receiver"]


@dataclass(frozen=True, slots=True)
class Peer:
    """One process of `bench.gpu.mortal`."""

    channel: Channel
    pid: int
    peer: KvPeer


@dataclass(frozen=True, slots=True)
class Load:
    """At most so many transfers at once, of so many bytes each."""

    transfers: int
    nbytes: int

    @property
    def pool_bytes(self) -> int:
        return 2 * self.nbytes


@dataclass(frozen=True, slots=True)
class Kill:
    """What was asked of the survivor, as far as one got; an answer that failed has its reason in `why`."""

    answers: dict[str, bool]
    settled_s: float | None
    why: str


def run(settings: Settings, tell: Tell) -> None:
    load = Load(64, 1 << 30) if settings.on_gpu else Load(8, 16 << 20)
    for killed in ("sender", "receiver"):
        uvloop.run(_kill_all(settings, tell, load, killed))


async def _kill_all(settings: Settings, tell: Tell, load: Load, killed: Killed) -> None:
    """One survivor, a peer for each moment, and one more to serve it at the end."""
    names = ["survivor", *(f"peer-{i}" for i in range(len(_MOMENTS) + 1))]
    kills = []
    async with AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(started("bench.gpu.mortal")) for _ in names]
        survivor, *peers = await _opened(channels, names, load.pool_bytes, settings.device)
        scene = Scene(survivor, killed, load, on_gpu=settings.on_gpu)
        async with asyncio.timeout(_PATIENCE_S):
            undisturbed_s = await scene.fit(peers[0])
        tell(note=f"{killed} killed in {scene.transfers} transfers of {load.nbytes >> 20} MiB at once")
        for moment, victim, healthy in zip(_MOMENTS, peers, peers[1:], strict=False):
            after_s = moment * undisturbed_s
            kill = await scene.kill(victim, healthy, after_s)
            kills.append(kill)
            tell(note=f"{killed} killed after {after_s * 1e3:.1f} of {undisturbed_s * 1e3:.0f} ms: {described(kill)}")
            if not kill.answers.get(SERVED):
                break  # there is no survivor for the next one
    tell(*rows(kills, killed))


async def _opened(channels: Sequence[Channel], names: Sequence[str], pool_bytes: int, device: str) -> list[Peer]:
    for channel, name in zip(channels, names, strict=True):
        channel.send(Open(worker_id=name, pool_bytes=pool_bytes, device=device))
    opened = []
    async with asyncio.timeout(_OPENING_S):
        for channel in channels:
            told = await channel.receive(Opened)
            opened.append(Peer(channel, told.pid, told.peer))
    return opened


class Scene:
    """A survivor, and who is killed beside it."""

    def __init__(self, survivor: Peer, killed: Killed, load: Load, *, on_gpu: bool) -> None:
        self._survivor = survivor
        self._killed = killed
        self._load = load
        self.transfers = _FIRST
        self._on_gpu = on_gpu
        self._numbers = count(1)
        self._clock = SystemClock()

    async def fit(self, peer: Peer) -> float:
        """Choose how many transfers there are at once; the seconds that they take when nobody dies."""
        await self._undisturbed_s(peer)  # connects, and maps memory
        few_s = await self._undisturbed_s(peer)
        self.transfers = max(_FIRST, min(self._load.transfers, int(_MOST_S * _FIRST / few_s)))
        return await self._undisturbed_s(peer)

    async def _undisturbed_s(self, peer: Peer) -> float:
        start = time.perf_counter()
        await self._begin(peer, self.transfers, self._load.nbytes, verify=False)
        for end in (self._survivor, peer):
            told = await end.channel.receive(Told)
            if not told.ok:
                raise AssertionError(f"a transfer that nobody disturbed failed: {told.error}")
        return time.perf_counter() - start

    async def kill(self, victim: Peer, healthy: Peer, after_s: float) -> Kill:
        answers: dict[str, bool] = {}
        settled_s, why, asked = None, "", LIVES
        try:
            async with asyncio.timeout(_PATIENCE_S):
                free_before = (await self._probe()).free_bytes
                await self._begin(victim, self.transfers, self._load.nbytes, verify=False)
                await self._clock.sleep(after_s)
                os.kill(victim.pid, signal.SIGKILL)
                start = time.perf_counter()
                gone = Gone(worker_id=victim.peer.worker_id, epoch=victim.peer.epoch)
                self._survivor.channel.send(Order(gone=gone))
                asked = SETTLES
                told = await self._survivor.channel.receive(Told)
                settled_s = time.perf_counter() - start
                answers |= {LIVES: True, SETTLES: told.quarantined == 0}
                why = told.error or "every transfer was over already"
                asked = COMPUTES
                probed = await self._probe()
                if self._on_gpu and probed.ok:
                    asked = MEMORY
                    back = await self._given_back(free_before)
                    answers[MEMORY] = self._is_enough(back)
                    why += f"; {back / 1e9:.2f} GB of its {self._load.pool_bytes / 1e9:.2f} GB are back"
                    asked = COMPUTES
                    probed = await self._probe()
                answers[COMPUTES] = probed.ok
                why += f"; {probed.error}" if probed.error else ""
                asked = SERVED
                answers[SERVED] = await self._serves(healthy)
        except ChildEnded:
            answers[LIVES] = False
        except TimeoutError:
            answers[asked] = False
        return Kill(answers, settled_s, why)

    async def _serves(self, peer: Peer) -> bool:
        await self._begin(peer, 1, _VERIFIED_BYTES, verify=True)
        ends = [await end.channel.receive(Told) for end in (self._survivor, peer)]
        return all(end.ok for end in ends) and ends[0].checksum == ends[1].checksum

    async def _given_back(self, free_before: int) -> int:
        """Bytes of the dead one that are free again, once they are enough or the driver has had its time."""
        until = time.perf_counter() + _DRIVER_S
        while True:
            back = (await self._probe()).free_bytes - free_before
            if self._is_enough(back) or time.perf_counter() > until:
                return back
            await self._clock.sleep(_LOOK_S)

    def _is_enough(self, given_back: int) -> bool:
        return given_back >= _GIVEN_BACK * self._load.pool_bytes

    async def _probe(self) -> Told:
        self._survivor.channel.send(Order(probe=True))
        return await self._survivor.channel.receive(Told)

    async def _begin(self, peer: Peer, transfers: int, nbytes: int, *, verify: bool) -> None:
        """Let both start the same transfers; they are under way when this returns."""
        sender, receiver = (peer, self._survivor) if self._killed == "sender" else (self._survivor, peer)
        numbers = tuple(islice(self._numbers, transfers))
        receiver.channel.send(Order(begin=Begin(numbers, sender.peer, False, nbytes, verify)))
        await receiver.channel.receive(Began)
        sender.channel.send(Order(begin=Begin(numbers, receiver.peer, True, nbytes, verify)))


def described(kill: Kill) -> str:
    """One line for people."""
    said = ", ".join(f"{question}: {'yes' if yes else 'NO'}" for question, yes in kill.answers.items())
    settled = "" if kill.settled_s is None else f"; settled after {kill.settled_s * 1e3:.1f} ms"
    return f"{said}{settled}; {kill.why}" if kill.why else f"{said}{settled}"


def rows(kills: Sequence[Kill], killed: Killed) -> list[Row]:
    """One per question that was asked, the least favourable answer as its minimum."""
    made = []
    for question, note in _QUESTIONS.items():
        answers = [float(kill.answers[question]) for kill in kills if question in kill.answers]
        if answers:
            made.append(
                summarise("killed", question, answers, unit="1 = yes", limited_by=note, parameters={"killed": killed})
            )
    settled = [kill.settled_s for kill in kills if kill.settled_s is not None]
    if settled:
        note = "from the kill until the wire had let go of every page"
        made.append(
            summarise(
                "killed", "settled", settled, unit="ms", scale=1e3, limited_by=note, parameters={"killed": killed}
            )
        )
    return made
