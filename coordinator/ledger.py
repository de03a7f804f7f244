"""What do the coordinator's clocks say of one request?

Pure. The machine notes what happens to a request, the shell around it when a request came and when its tokens left: its
`Moments`. `of_record` and `Moments.complete` make a `Ledger` of both, with what the workers said of themselves.
"""

from collections import deque
from dataclasses import dataclass

import msgspec

from coordinator.state import RequestRecord
from runtime.stages import Ledger
from transport.messages.client import MAX_LEDGERS


@dataclass(slots=True)
class Moments:
    """When one request came and when its tokens left, on the coordinator's clock.

    Made by the front that received the request, which also notes what it passes on; the service notes the rest.
    """

    client_id: str  # as the client knows the request
    received_at: float
    submitted_at: float | None = None
    tokenise_s: float = 0.0
    admitted_s: float = 0.0  # dispatched -> Admit passed to the socket
    ordered_s: float = 0.0  # dispatched -> the last order passed to the socket
    first_token_at: float | None = None
    last_token_at: float | None = None
    last_text_at: float | None = None  # handed to the front
    first_passed_at: float | None = None
    last_passed_at: float | None = None

    def ordered(self, seconds: float, *, admit: bool) -> None:
        """An order was passed to the socket, so long after the request was dispatched."""
        self.ordered_s = seconds
        if admit:
            self.admitted_s = seconds

    def token(self, taken_in_at: float, handed_on_at: float, *, last: bool) -> None:
        """A token was taken in, and its text has been handed to the front."""
        if self.first_token_at is None:
            self.first_token_at = taken_in_at
        if last:
            self.last_token_at, self.last_text_at = taken_in_at, handed_on_at

    def passed(self, now: float, *, last: bool) -> None:
        """The front has passed tokens to the socket, up to the `last` one."""
        if self.first_passed_at is None:
            self.first_passed_at = now
        if last and self.last_passed_at is None:
            self.last_passed_at = now

    @property
    def has_all_text(self) -> bool:
        return self.last_text_at is not None

    def complete(self, ledger: Ledger, now: float) -> Ledger:
        """With the times of the shell; what has not been passed on yet is passed on `now`."""
        submitted_at = self.received_at if self.submitted_at is None else self.submitted_at
        detokenise_s = send_s = first_out_s = 0.0
        if self.first_token_at is not None:
            first_passed_at = now if self.first_passed_at is None else self.first_passed_at
            first_out_s = max(first_passed_at - self.first_token_at, 0.0)
        if self.last_token_at is not None and self.last_text_at is not None:
            detokenise_s = self.last_text_at - self.last_token_at
            last_passed_at = now if self.last_passed_at is None else self.last_passed_at
            send_s = max(last_passed_at - self.last_text_at, 0.0)
        return msgspec.structs.replace(
            ledger,
            prepare_s=max(submitted_at - self.received_at - self.tokenise_s, 0.0),
            tokenise_s=self.tokenise_s,
            admit_s=self.admitted_s,
            dispatch_s=self.ordered_s,
            first_out_s=first_out_s,
            detokenise_s=detokenise_s,
            send_s=send_s,
        )


@dataclass(frozen=True, slots=True)
class Ended:
    """An answer whose client has had its last word; `moments` may still get the time at which its last token left."""

    request_id: int
    prompt_tokens: int
    tokens: int
    ended_at: float
    ledger: Ledger
    moments: Moments


def new_ring() -> deque[Ended]:
    """The newest answers, the newest last: as many as a client may ask for."""
    return deque(maxlen=MAX_LEDGERS)


def of_record(record: RequestRecord) -> Ledger:
    """Of a request that has ended, as the machine knows it."""
    started = record.submitted_at
    return Ledger(
        queue_s=(record.dispatched_at or record.finished_at) - started,
        first_token_s=(record.first_token_at or record.finished_at) - started,
        handoff_gap_s=record.handoff_gap_s,
        total_s=record.finished_at - started,
        prefill=record.prefill_stages,
        decode=record.decode_stages,
        prefill_worker=record.served_by[0],
        decode_worker=record.served_by[1],
    )
