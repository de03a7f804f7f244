"""What does the decode side of one transfer do next?

`transport.kv` explains the protocol. The port brings what the peer says; the owner only waits for the end. All on the
loop thread, nothing here waits but `settled`.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from runtime.buffers import Region
from transport.kv_early import Held, Incarnation
from transport.kv_messages import MAX_RUNS, Landing, Offer, Refused, Trailer
from transport.kv_settling import GRACE_S, InFlight, Line, Phase, Plan, Timing, Watchdog, agree, ignore


@dataclass(frozen=True, slots=True)
class ReceiveOutcome:
    """`quarantine`: the wire never let go of some page, so none of them may be used again.

    Without `ok` the pages hold anything, and `digests` and `note` are empty.
    """

    ok: bool
    error: str | None
    quarantine: bool
    digests: bytes
    note: bytes
    nbytes: int  # of pages; 0 without `ok`
    seconds: float  # receives posted -> all in


class Inbound:
    """Pages on their way here from a prefill worker."""

    def __init__(self, line: Line, regions: Sequence[Region], timing: Timing) -> None:
        if not 0 < len(regions) <= MAX_RUNS:
            raise ValueError(f"{len(regions)} runs of pages; 1 to {MAX_RUNS} can be received into")
        self._line = line
        self._regions = tuple(regions)
        self._total_bytes = sum(region.nbytes for region in regions)
        self._timing = timing
        self._phase = Phase.OFFERED
        self._plan = Plan()
        self._trailer: Trailer | None = None
        self._failure: str | None = None
        self._owes_drain = False  # settled before the peer's Offer came: what it then sends needs a receiver
        self._started_at: float | None = None
        self._in_flight = InFlight(timing.clock, self._on_piece)
        self._watchdog = Watchdog(timing.clock, self._on_silence)
        self._outcome: ReceiveOutcome | None = None
        self._is_settled = asyncio.Event()

    @property
    def peer(self) -> Incarnation:
        return self._line.peer

    # --- the owner ---------------------------------------------------------------------------------------------------

    async def settled(self) -> ReceiveOutcome:
        """Ends when the wire will not touch the pages any more, or when that can no longer be known."""
        await self._is_settled.wait()
        assert self._outcome is not None
        return self._outcome

    # --- the port ----------------------------------------------------------------------------------------------------

    def start(self, held: Sequence[Held]) -> None:
        """Say the Landing, unless the peer, in `held`, has already taken its Offer back."""
        if self._line.link is None:
            self.fail(f"worker {self.peer[0]} cannot be reached")
            return
        for message in held:
            if isinstance(message, Trailer):
                self._refuse("it was taken back")
                self.fail(message.error or "it ended before it was expected")
                return
        self._line.say(
            Landing(
                header=self._line.header,
                transfer_id=self._line.transfer_id,
                runs=tuple(region.nbytes for region in self._regions),
                piece_bytes=self._line.piece_bytes,
            )
        )
        self._watchdog.restart(self._timing.offer_timeout_s)
        for message in held:
            self.hear(message)

    def hear(self, message: Held) -> None:
        match message:
            case Offer():
                self._on_offer(message)
            case Trailer():
                self._on_trailer(message)

    def peer_gone(self, reason: str) -> None:
        """Its link is closed: nothing can be said any more, and the wire lets go of what it holds."""
        self._owes_drain = False
        if self._phase is Phase.SETTLED:
            self._settle()
            return
        self._failure = self._failure or reason
        self._phase = Phase.SETTLING
        self._watchdog.restart(GRACE_S)
        self._settle_if_idle()

    def fail(self, reason: str) -> None:
        """Settle now, whatever is still under way, and say nothing."""
        self._owes_drain = False
        self._failure = self._failure or reason
        self._settle()

    # --- what follows ------------------------------------------------------------------------------------------------

    def _on_offer(self, offer: Offer) -> None:
        if self._phase is not Phase.OFFERED and not self._owes_drain:
            return  # said twice
        try:
            plan = agree(self._regions, offer.runs, min(self._line.piece_bytes, offer.piece_bytes))
        except ValueError as error:  # the peer comes to the same conclusion
            self._failure = self._failure or str(error)
            self._owes_drain = False
            self._settle()
            return
        if self._owes_drain:
            self._owes_drain = False
            for piece in plan.pieces:
                ignore(self._line.recv(piece, self._line.scrap))
            self._settle()
            return
        self._phase = Phase.AGREED
        self._plan = plan
        self._started_at = self._timing.clock.now()
        self._watchdog.restart(self._timing.timeout_s)
        for piece, place in zip(plan.pieces, plan.places, strict=True):
            self._in_flight.add(self._line.recv(piece, place))

    def _on_trailer(self, trailer: Trailer) -> None:
        if self._phase not in (Phase.OFFERED, Phase.AGREED):
            return  # said twice, or too late
        self._trailer = trailer
        self._failure = trailer.error
        if trailer.error is None and self._plan.nbytes != self._total_bytes:
            self._failure = f"it ended after {self._plan.nbytes} of {self._total_bytes} bytes"
        self._phase = Phase.SETTLING
        self._watchdog.restart(self._timing.timeout_s)
        self._settle_if_idle()

    def _refuse(self, reason: str) -> None:
        self._line.say(Refused(header=self._line.header, transfer_id=self._line.transfer_id, reason=reason))

    def _on_piece(self) -> None:
        self._watchdog.touch()
        self._settle_if_idle()

    def _on_silence(self) -> None:
        if self._phase is Phase.SETTLED:  # the Offer that this was kept for never came
            self._line.forget()
            return
        if self._failure is None:
            self._failure = "the prefill worker sent nothing for too long"
            self._refuse(self._failure)
        self._owes_drain = self._phase is Phase.OFFERED
        self._settle()

    def _settle_if_idle(self) -> None:
        """A piece that failed ends the transfer too: its Trailer may never come."""
        ended = self._phase is Phase.SETTLING or self._in_flight.error is not None
        if ended and self._phase is not Phase.SETTLED and self._in_flight.pending == 0:
            self._settle()

    def _settle(self) -> None:
        self._phase = Phase.SETTLED
        if self._outcome is None:
            self._outcome = self._conclude()
            self._is_settled.set()
        if self._owes_drain:
            self._watchdog.restart(self._timing.timeout_s)
        else:
            self._watchdog.stop()
            self._line.forget()

    def _conclude(self) -> ReceiveOutcome:
        error = self._failure or self._in_flight.error
        trailer = self._trailer if error is None else None
        return ReceiveOutcome(
            ok=error is None,
            error=error,
            quarantine=self._in_flight.pending > 0,
            digests=trailer.digests if trailer is not None else b"",
            note=trailer.note if trailer is not None else b"",
            nbytes=self._total_bytes if error is None else 0,
            seconds=self._timing.clock.now() - self._started_at if self._started_at is not None else 0.0,
        )
