"""What happens to the pages of a prompt while and after it is computed?

They leave for the decode worker chunk by chunk; token 1 travels behind the last of them, with the digest of every page
(ADR-0004). A hand-off always settles: by success, by refusal, by the loss of the peer, or by being abandoned, in which
case the receives that the other side has posted are still satisfied. Until then its pages have a second owner.
"""

from dataclasses import dataclass

import msgspec

from runtime.clock import Clock
from runtime.stages import PrefillStages
from transport.kv import KvPort, Outbound
from transport.messages.worker import Prefill


@dataclass(frozen=True, slots=True)
class HandOffResult:
    error: str | None  # None for a complete transfer and for one that was abandoned on purpose
    quarantine: bool
    nbytes: int
    pieces: int
    seconds: float  # with at least one piece under way
    tail_s: float  # token 1 -> last piece settled
    first_piece_at: float | None = None  # None: no piece was sent
    span_s: float = 0.0  # first piece -> settled

    def add_to(self, stages: PrefillStages, started_at: float | None) -> PrefillStages:
        """`started_at`: when the first chunk of the prompt started."""
        first = self.first_piece_at
        return msgspec.structs.replace(
            stages,
            transfer_s=self.seconds,
            transfer_first_s=first - started_at if first is not None and started_at is not None else 0.0,
            transfer_tail_s=self.tail_s,
            transfer_bytes=self.nbytes,
            pieces=self.pieces,
        )


class HandOff:
    """One prompt's pages on their way."""

    def __init__(self, outbound: Outbound, page_bytes: int, pages: int) -> None:
        self._outbound = outbound
        self._page_bytes = page_bytes
        self._pages = pages
        self._digests = bytearray()
        self._completed_at: float | None = None
        self._abandoned = False

    def pages_done(self, digests: bytes) -> None:
        """The next `len(digests) / 8` pages will not change any more."""
        self._digests += digests
        self._outbound.push(len(self._digests) // 8 * self._page_bytes)

    def complete(self, token_id: int, now: float) -> None:
        """All pages are done; `token_id` is token 1."""
        if len(self._digests) != 8 * self._pages:
            raise AssertionError(f"{len(self._digests) // 8} of {self._pages} pages have a digest")
        self._completed_at = now
        self._outbound.finish(bytes(self._digests), msgspec.msgpack.encode(token_id))

    def abandon(self, reason: str) -> None:
        self._abandoned = True
        self._outbound.abort(reason)

    async def settled(self, clock: Clock) -> HandOffResult:
        """Ends when nothing reads the pages any more, or when that can no longer be known (`quarantine`)."""
        outcome = await self._outbound.settled()
        return HandOffResult(
            error=None if outcome.ok or self._abandoned else outcome.error,
            quarantine=outcome.quarantine,
            nbytes=outcome.nbytes,
            pieces=outcome.pieces,
            seconds=outcome.seconds,
            first_piece_at=outcome.first_piece_at,
            span_s=outcome.span_s,
            tail_s=clock.now() - self._completed_at if self._completed_at is not None else 0.0,
        )


async def decline(kv: KvPort, request: Prefill) -> None:
    """Tell the decode worker that a prompt which never started will not come."""
    if request.peer is not None:
        outbound = kv.send(request.transfer_id, request.peer, ())
        outbound.abort("cancelled")
        await outbound.settled()
