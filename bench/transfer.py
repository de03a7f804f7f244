"""How fast do pages move from one process to another?

Measures one transfer at a time through `transport.kv` over UCX, between two processes on cores of their own: from the
sender's `send` until both sides have settled, so the words that the two ports exchange are part of it. Pages lie in one
run (`contiguous`) or in single pages with a gap between any two (`paged`). Beside it, for the same number of bytes: one
copy inside one process, and `ucx_perftest` with UCX set up as ours is, and with UCX's own choice. The variants take
turns within every round, so that noise hits all alike; a ratio compares two medians of the same round.

Limited by TCP on the loopback device, which survives the death of a peer (ADR-0013), and per message by the Python
around it. Does not measure two hosts, several transfers at once, or cold memory: every repetition moves the same bytes.
GPU memory is measured by `bench.gpu`, with the same processes and words.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from msgspec import Struct

from bench import perftest
from bench.child import Channel, started
from bench.rows import Row, summarise
from transport.kv import PIECE_BYTES
from transport.messages.common import KvPeer

_MIB = 1 << 20
_PAGE_BYTES = 360 << 10  # 16 tokens of SmolLM2 in bfloat16
_BURST = 9  # measurements of one variant in one round; their median counts
_SHM_NOTE = (
    "two copies through shared memory, one on each core, where memcpy takes one; of a small one the words of the ports"
)
_OTHER_NOTE = "the transport that UCX chose: with TCP the kernel's copies and calls; Python per message"
_PAGED_NOTE = "as contiguous, with one message per page: each costs both sides its share of Python"
_MEMCPY_NOTE = "memory bandwidth of one core; the bytes may be in its caches"
_LIKE_OURS_NOTE = "UCX's TCP on the loopback device; both processes poll, each on a core of its own"
_DEFAULT_NOTE = "UCX's own choice, which does not survive the death of a peer in mid-transfer; both processes poll"
_RATIO_NOTE = "the two rates of the same round"

_COMPARED = (
    ("contiguous", "memcpy"),
    ("contiguous", "ucx_perftest as ours"),
    ("contiguous", "ucx_perftest default"),
    ("paged", "contiguous"),
)


class Opening(Struct, frozen=True):
    """The first message to an end."""

    worker_id: str
    pool_bytes: int
    device: str = "cpu"  # where its memory is: cpu, cuda:0, ...
    piece_bytes: int = PIECE_BYTES  # the largest message


class Opened(Struct, frozen=True):
    peer: KvPeer
    ucx_options: dict[str, str]


class Job(Struct, frozen=True):
    """Move `nbytes` bytes to or from `peer`, in runs of `run_bytes` with as large a gap behind each."""

    transfer_id: int
    peer: KvPeer
    sends: bool
    nbytes: int
    run_bytes: int
    verify: bool  # receiver: start from zeros; both: tell the checksum


class Posted(Struct, frozen=True):
    """The receiver expects the transfer."""


class Moved(Struct, frozen=True):
    """`seconds`: sender: from `send` on; receiver: from the posted receives on; both until settled."""

    seconds: float
    checksum: int
    transport: str


@dataclass(frozen=True, slots=True)
class _Plan:
    sizes: tuple[int, ...]
    rounds: int


_FULL = _Plan((1 * _MIB, 4 * _MIB, 16 * _MIB, 64 * _MIB), rounds=7)
_QUICK = _Plan((1 * _MIB, 16 * _MIB), rounds=2)


@dataclass(slots=True)
class Pair:
    """Two processes, each with a port and memory of its own."""

    sender: Channel
    receiver: Channel
    sender_peer: KvPeer
    receiver_peer: KvPeer
    ucx_options: dict[str, str]
    transfers: int = 0
    transport: str = ""

    async def move_s(self, nbytes: int, run_bytes: int, *, verify: bool = False) -> float:
        """The longer of the two sides' times for one transfer.

        Raises:
            AssertionError: other bytes arrived than were sent.
        """
        self.transfers += 1
        common = {"transfer_id": self.transfers, "nbytes": nbytes, "run_bytes": run_bytes, "verify": verify}
        self.receiver.send(Job(peer=self.sender_peer, sends=False, **common))  # type: ignore[arg-type]  # a dict
        await self.receiver.receive(Posted)
        self.sender.send(Job(peer=self.receiver_peer, sends=True, **common))  # type: ignore[arg-type]  # likewise
        sent, received = await self.sender.receive(Moved), await self.receiver.receive(Moved)
        if sent.checksum != received.checksum:
            raise AssertionError(f"transfer {self.transfers} of {nbytes} bytes arrived damaged")
        self.transport = sent.transport
        return max(sent.seconds, received.seconds)

    async def burst_s(self, nbytes: int, run_bytes: int) -> float:
        return median([await self.move_s(nbytes, run_bytes) for _ in range(_BURST)])


async def run(*, quick: bool) -> list[Row]:
    plan = _QUICK if quick else _FULL
    cores = sorted(os.sched_getaffinity(0))
    pool_bytes = 2 * max(plan.sizes) + 2 * _PAGE_BYTES
    rates: dict[tuple[int, str], list[float]] = {}
    async with (
        started("bench.transfer_peer", cores[:1]) as sender,
        started("bench.transfer_peer", cores[-1:]) as receiver,
    ):
        pair = await connected(sender, receiver, pool_bytes)
        variants = {
            "ucx_perftest as ours": perftest.like_ours(pair.ucx_options),
            "ucx_perftest default": perftest.default(),
        }
        tool = await perftest.working(variants.values(), cores)
        for nbytes in plan.sizes:
            for run_bytes in (nbytes, _PAGE_BYTES):
                await pair.move_s(nbytes, run_bytes, verify=True)  # connects, touches all memory, proves the bytes
        for _ in range(plan.rounds):
            for nbytes in plan.sizes:
                seconds = {
                    "memcpy": memcpy_s(nbytes),
                    "contiguous": await pair.burst_s(nbytes, nbytes),
                    "paged": await pair.burst_s(nbytes, _PAGE_BYTES),
                }
                if tool is not None:
                    for name, variant in variants.items():
                        seconds[name] = await tool.one_way_s(nbytes, variant, cores, _BURST)
                for name, taken_s in seconds.items():
                    rates.setdefault((nbytes, name), []).append(nbytes / taken_s / 1e9)
    return _rows(rates, plan.sizes, pair.transport)


async def connected(
    sender: Channel, receiver: Channel, pool_bytes: int, device: str = "cpu", piece_bytes: int = PIECE_BYTES
) -> Pair:
    """Two processes of `bench.transfer_peer` that hold `pool_bytes` each."""
    for name, channel in (("sender", sender), ("receiver", receiver)):
        channel.send(Opening(worker_id=name, pool_bytes=pool_bytes, device=device, piece_bytes=piece_bytes))
    at_sender, at_receiver = await sender.receive(Opened), await receiver.receive(Opened)
    return Pair(sender, receiver, at_sender.peer, at_receiver.peer, at_sender.ucx_options)


def memcpy_s(nbytes: int) -> float:
    """Median seconds of a copy inside this process, between memory that was touched before."""
    source, target = np.ones(nbytes, np.uint8), np.zeros(nbytes, np.uint8)
    times = []
    for _ in range(_BURST):
        start = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - start)
    return median(times)


def _rows(rates: dict[tuple[int, str], list[float]], sizes: Sequence[int], transport: str) -> list[Row]:
    notes = {
        "memcpy": _MEMCPY_NOTE,
        "contiguous": _SHM_NOTE if transport in ("posix", "sysv") else _OTHER_NOTE,
        "paged": _PAGED_NOTE,
        "ucx_perftest as ours": _LIKE_OURS_NOTE,
        "ucx_perftest default": _DEFAULT_NOTE,
    }
    rows = []
    for nbytes in sizes:
        size: dict[str, str | int] = {"MiB": nbytes // _MIB}
        for variant in (name for name in notes if (nbytes, name) in rates):
            parameters = size | ({"transport": transport} if variant in ("contiguous", "paged") else {})
            values, note = rates[nbytes, variant], notes[variant]
            rows.append(summarise("transfer", variant, values, unit="GB/s", limited_by=note, parameters=parameters))
        for ours, other in (pair for pair in _COMPARED if (nbytes, pair[1]) in rates):
            pairs = zip(rates[nbytes, ours], rates[nbytes, other], strict=True)
            ratios = [rate / other_rate for rate, other_rate in pairs]
            name = f"{ours} / {other}"
            rows.append(summarise("transfer", name, ratios, unit="ratio", limited_by=_RATIO_NOTE, parameters=size))
    return rows
