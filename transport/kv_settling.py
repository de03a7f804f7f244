"""When has the wire let go of the memory of a transfer, and when is it too late to wait?

Parts of both sides of a transfer (`transport.kv_outbound`, `transport.kv_inbound`), on the loop thread.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from runtime.buffers import Region
from runtime.clock import Clock
from transport.kv_early import Incarnation
from transport.kv_messages import Header, KvMessage
from transport.pieces import Piece, place, refine
from transport.wire import Link

PIECE_BITS = 20
"""A tag is the transfer id (40 bits) and the number of the piece: 60 bits, the wire has the others."""

GRACE_S = 1.0
"""How long the wire has to let go of memory after its peer's death; UCX takes some milliseconds."""


class Phase(Enum):
    """Where a transfer stands; both sides go through these in this order, and may skip some."""

    OFFERED = auto()  # our runs are said, theirs are not known yet: no page is touched
    AGREED = auto()  # pieces are known and move
    SETTLING = auto()  # the last word was said or heard; the wire still holds memory
    SETTLED = auto()  # the outcome is known; no page will be touched any more


@dataclass(frozen=True, slots=True)
class Timing:
    clock: Clock
    timeout_s: float  # longest silence of the peer while it has something to do
    offer_timeout_s: float  # longest wait for its first word, which its queue delays


@dataclass(frozen=True, slots=True)
class Line:
    """One transfer's way to its peer. `scrap` is one byte that stands in for pages that were let go."""

    link: Link | None  # None: there is no way to it; then nothing is said or moved
    peer: Incarnation
    header: Header
    transfer_id: int
    piece_bytes: int
    scrap: Region
    encode: Callable[[KvMessage], bytes]
    forget: Callable[[], None]  # no message about this transfer matters any more

    def say(self, message: KvMessage) -> None:
        if self.link is not None:
            self.link.send_control(self.encode(message))

    def send(self, piece: Piece, region: Region) -> asyncio.Future[None]:
        assert self.link is not None
        return self.link.send(self._tag(piece), region)

    def recv(self, piece: Piece, region: Region) -> asyncio.Future[None]:
        assert self.link is not None
        return self.link.recv(self._tag(piece), region)

    def _tag(self, piece: Piece) -> int:
        return self.transfer_id << PIECE_BITS | piece.index


@dataclass(frozen=True, slots=True)
class Plan:
    """What both sides agreed on: the pieces, and where each lies in this side's pages."""

    pieces: tuple[Piece, ...] = ()
    places: tuple[Region, ...] = ()

    @property
    def nbytes(self) -> int:
        return self.pieces[-1].end if self.pieces else 0


def agree(regions: Sequence[Region], theirs: Sequence[int], piece_bytes: int) -> Plan:
    """The plan of this side; no pieces at all if one side has no pages to give or to fill.

    Raises:
        ValueError: the two sides do not have the same number of bytes, or the pieces are too many for a tag.
    """
    if not regions or not theirs:
        return Plan()
    pieces = refine([region.nbytes for region in regions], theirs, piece_bytes)
    if len(pieces) > 1 << PIECE_BITS:
        raise ValueError(f"{len(pieces)} pieces are too many")
    return Plan(pieces, place(regions, pieces))


class InFlight:
    """Messages whose memory the wire holds. Calls `on_change` when it lets go of one, whatever came of it."""

    def __init__(self, clock: Clock, on_change: Callable[[], None]) -> None:
        self._clock = clock
        self._on_change = on_change
        self._busy_since = 0.0
        self.first_at: float | None = None  # when the first was added
        self._busy_s = 0.0
        self.pending = 0
        self.error: str | None = None  # of the first that failed

    def add(self, future: asyncio.Future[None]) -> None:
        if self.pending == 0:
            self._busy_since = self._clock.now()
            self.first_at = self._busy_since if self.first_at is None else self.first_at
        self.pending += 1
        future.add_done_callback(self._ended)

    @property
    def busy_s(self) -> float:
        """For how long the wire has held at least one: without the pauses in which the next chunk was computed."""
        return self._busy_s + (self._clock.now() - self._busy_since if self.pending else 0.0)

    @property
    def span_s(self) -> float:
        """The first one -> now, with the pauses; 0 if there was none."""
        return self._clock.now() - self.first_at if self.first_at is not None else 0.0

    def _ended(self, future: asyncio.Future[None]) -> None:
        self.pending -= 1
        if self.pending == 0:
            self._busy_s += self._clock.now() - self._busy_since
        error = future.exception()
        if error is not None and self.error is None:
            self.error = str(error) or type(error).__name__
        self._on_change()


def ignore(future: asyncio.Future[None]) -> None:
    """Let a message end as it likes: its memory is scrap."""
    future.add_done_callback(asyncio.Future.exception)


class Watchdog:
    """Calls `on_silence` once when `touch` was not called for as long as `restart` said."""

    def __init__(self, clock: Clock, on_silence: Callable[[], None]) -> None:
        self._clock = clock
        self._on_silence = on_silence
        self._timeout_s = 0.0
        self._deadline_s = 0.0
        self._task: asyncio.Task[None] | None = None

    def restart(self, timeout_s: float) -> None:
        self.stop()
        self._timeout_s = timeout_s
        self.touch()
        self._task = asyncio.create_task(self._watch())

    def touch(self) -> None:
        self._deadline_s = self._clock.now() + self._timeout_s

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _watch(self) -> None:
        while (left_s := self._deadline_s - self._clock.now()) > 0:
            await self._clock.sleep(left_s)
        self._task = None  # so that `stop` does not cancel the task that calls it
        self._on_silence()
