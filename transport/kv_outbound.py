"""What does the prefill side of one transfer do next?

`transport.kv` explains the protocol. The owner pushes, finishes or aborts; the port brings what the peer says. All on
the loop thread, nothing here waits but `settled`.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from runtime.buffers import Region
from transport.kv_early import Held, Incarnation
from transport.kv_messages import MAX_RUNS, Landing, Offer, Refused, Trailer
from transport.kv_settling import GRACE_S, InFlight, Line, Phase, Plan, Timing, Watchdog, agree, ignore
from transport.messages.common import MAX_REASON_CHARS

_MAX_NOTE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class SendOutcome:
    """`quarantine`: the wire never let go of some page, so none of them may be used again."""

    ok: bool
    error: str | None
    quarantine: bool
    nbytes: int  # of pages, that the wire was given
    pieces: int
    seconds: float  # with at least one piece under way
    first_piece_at: float | None = None  # on this process's clock; None: none was sent
    span_s: float = 0.0  # first piece -> settled


class Outbound:
    """Pages on their way to a decode worker."""

    def __init__(self, line: Line, regions: Sequence[Region], timing: Timing) -> None:
        if len(regions) > MAX_RUNS:
            raise ValueError(f"{len(regions)} runs of pages; {MAX_RUNS} is the most")
        self._line = line
        self._regions = tuple(regions)
        self._total_bytes = sum(region.nbytes for region in regions)
        self._timing = timing
        self._phase = Phase.OFFERED
        self._plan = Plan()
        self._sent = 0  # pieces; those behind them are still to be sent
        self._ready_bytes = 0
        self._trailer: Trailer | None = None  # to be said behind the last piece
        self._failure: str | None = None
        self._owes_filler = False  # settled before the peer's Landing came: the receives that go with it need an end
        self._in_flight = InFlight(timing.clock, self._on_piece)
        self._watchdog = Watchdog(timing.clock, self._on_silence)
        self._outcome: SendOutcome | None = None
        self._is_settled = asyncio.Event()

    @property
    def peer(self) -> Incarnation:
        return self._line.peer

    # --- the owner ---------------------------------------------------------------------------------------------------

    def push(self, ready_bytes: int) -> None:
        """The first `ready_bytes` bytes will not change any more. Nothing happens after the end of the transfer.

        Raises:
            ValueError: fewer bytes than before, or more than there are.
        """
        if not self._ready_bytes <= ready_bytes <= self._total_bytes:
            raise ValueError(f"{ready_bytes} of {self._total_bytes} bytes ready after {self._ready_bytes}")
        self._ready_bytes = ready_bytes
        self._advance()

    def finish(self, digests: bytes, note: bytes) -> None:
        """All bytes are ready, and this goes behind them. Nothing happens after the end of the transfer.

        Raises:
            ValueError: there are no pages, or more behind them than a `Trailer` holds.
        """
        if not self._regions or len(digests) > 8 * MAX_RUNS or len(note) > _MAX_NOTE_BYTES:
            raise ValueError(f"{len(digests)} bytes of digests and a note of {len(note)} for {len(self._regions)} runs")
        self._trailer = Trailer(
            header=self._line.header, transfer_id=self._line.transfer_id, digests=digests, note=note
        )
        self.push(self._total_bytes)

    def abort(self, reason: str) -> None:
        """Send no further page. Nothing happens if all has been sent already."""
        self._give_up(reason)

    async def settled(self) -> SendOutcome:
        """Ends when the wire will not touch the pages any more, or when that can no longer be known."""
        await self._is_settled.wait()
        assert self._outcome is not None
        return self._outcome

    # --- the port ----------------------------------------------------------------------------------------------------

    def start(self, held: Sequence[Held]) -> None:
        """Say the Offer, unless the peer, in `held`, has already refused it."""
        if self._line.link is None:
            self.fail(f"worker {self.peer[0]} cannot be reached")
            return
        for message in held:
            if isinstance(message, Refused):
                self.fail(message.reason)
                return
        self._line.say(
            Offer(
                header=self._line.header,
                transfer_id=self._line.transfer_id,
                runs=tuple(region.nbytes for region in self._regions),
                piece_bytes=self._line.piece_bytes,
            )
        )
        self._watchdog.restart(self._timing.timeout_s)
        for message in held:
            self.hear(message)

    def hear(self, message: Held) -> None:
        match message:
            case Landing():
                self._on_landing(message)
            case Refused(reason=reason):
                self._on_refused(reason)

    def peer_gone(self, reason: str) -> None:
        """Its link is closed: nothing can be said any more, and the wire lets go of what it holds."""
        self._owes_filler = False
        if self._phase is Phase.SETTLED:
            self._settle()
            return
        self._failure = self._failure or reason
        self._phase = Phase.SETTLING
        self._watchdog.restart(GRACE_S)
        self._settle_if_idle()

    def fail(self, reason: str) -> None:
        """Settle now, whatever is still under way, and say nothing."""
        self._owes_filler = False
        self._failure = self._failure or reason
        self._settle()

    # --- what follows ------------------------------------------------------------------------------------------------

    def _on_landing(self, landing: Landing) -> None:
        if self._phase is not Phase.OFFERED and not self._owes_filler:
            return  # said twice
        try:
            self._plan = agree(self._regions, landing.runs, min(self._line.piece_bytes, landing.piece_bytes))
        except ValueError as error:  # the peer comes to the same conclusion
            self._failure = self._failure or str(error)
            self._owes_filler = False
            self._settle()
            return
        if self._owes_filler:
            self._owes_filler = False
            self._fill()
            self._settle()
        else:
            self._phase = Phase.AGREED
            self._watchdog.touch()
            self._advance()

    def _on_refused(self, reason: str) -> None:
        if self._phase is Phase.OFFERED or self._owes_filler:  # no receive was posted, and none will be
            self._owes_filler = False
            self._failure = self._failure or reason
            self._settle()
        else:
            self._give_up(reason)

    def _advance(self) -> None:
        """Send what is ready; say the last word behind the last piece."""
        if self._phase is not Phase.AGREED:
            return
        pieces = self._plan.pieces
        if self._in_flight.pending == 0:
            self._watchdog.touch()
        while self._sent < len(pieces) and pieces[self._sent].end <= self._ready_bytes:
            self._in_flight.add(self._line.send(pieces[self._sent], self._plan.places[self._sent]))
            self._sent += 1
        if self._trailer is not None:
            self._line.say(self._trailer)
            self._phase = Phase.SETTLING
            self._settle_if_idle()

    def _give_up(self, reason: str) -> None:
        if self._phase not in (Phase.OFFERED, Phase.AGREED):
            return
        self._failure = reason[:MAX_REASON_CHARS]
        self._owes_filler = self._phase is Phase.OFFERED
        self._phase = Phase.SETTLING
        self._fill()
        self._line.say(Trailer(header=self._line.header, transfer_id=self._line.transfer_id, error=self._failure))
        self._settle_if_idle()

    def _fill(self) -> None:
        """End the receives of all pieces that were not sent, with one byte each that belongs to no page."""
        for piece in self._plan.pieces[self._sent :]:
            ignore(self._line.send(piece, self._line.scrap))

    def _on_piece(self) -> None:
        self._watchdog.touch()
        if self._in_flight.error is not None:
            self._give_up(self._in_flight.error)
        self._settle_if_idle()

    def _on_silence(self) -> None:
        if self._phase is Phase.SETTLED:  # the Landing that this was kept for never came
            self._line.forget()
        elif self._phase is Phase.AGREED and self._in_flight.pending == 0:  # it is the owner who is slow
            self._watchdog.restart(self._timing.timeout_s)
        else:
            reason = f"the decode worker did nothing for {self._timing.timeout_s:g} s"
            self._give_up(reason)
            self._failure = self._failure or reason
            self._settle()

    def _settle_if_idle(self) -> None:
        if self._phase is Phase.SETTLING and self._in_flight.pending == 0:
            self._settle()

    def _settle(self) -> None:
        self._phase = Phase.SETTLED
        if self._outcome is None:
            self._outcome = self._conclude()
            self._is_settled.set()
        if self._owes_filler:
            self._watchdog.restart(self._timing.timeout_s)
        else:
            self._watchdog.stop()
            self._line.forget()

    def _conclude(self) -> SendOutcome:
        error = self._failure or self._in_flight.error
        return SendOutcome(
            ok=error is None,
            error=error,
            quarantine=self._in_flight.pending > 0,
            nbytes=self._plan.pieces[self._sent - 1].end if self._sent else 0,
            pieces=self._sent,
            seconds=self._in_flight.busy_s,
            first_piece_at=self._in_flight.first_at,
            span_s=self._in_flight.span_s,
        )
