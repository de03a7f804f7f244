"""What do two KV ports say to each other beside the pages themselves?

They travel as control messages of the wire that the pages take, so one link carries everything about a transfer. The
prefill side says an `Offer` and at the end a `Trailer`, the decode side a `Landing` or a `Refused`, or this one later.
"""

from typing import Annotated

from msgspec import Meta, Struct

from transport.messages.common import Count, Epoch, Message, Name, Reason, TransferId

MAX_RUNS = 1 << 16
"""Runs of contiguous pages of one side of a transfer; more than the longest prompt has pages of 16 tokens."""

Fingerprint = Annotated[str, Meta(max_length=256)]
Runs = Annotated[tuple[Annotated[int, Meta(gt=0, lt=1 << 48)], ...], Meta(max_length=MAX_RUNS)]
"""Lengths in bytes, in the order of the transfer."""


class Header(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Which incarnation says this to which, about pages of which layout. What does not fit is dropped unread."""

    sender: Name
    sender_epoch: Epoch
    receiver_epoch: Epoch
    fingerprint: Fingerprint


class Greeting(Message, frozen=True):
    """Nothing; its way here makes the wire connect before the first transfer has to wait for that."""

    header: Header


class Offer(Message, frozen=True):
    """Prefill: these runs will be sent. None at all: the prompt will not be computed, a `Trailer` says why."""

    header: Header
    transfer_id: TransferId
    runs: Runs
    piece_bytes: Count  # the largest message that this side wants; the smaller wish counts


class Landing(Message, frozen=True):
    """Decode: the bytes go into these runs."""

    header: Header
    transfer_id: TransferId
    runs: Runs
    piece_bytes: Count


class Refused(Message, frozen=True):
    """Decode: this side takes no part, or no further part, in the transfer."""

    header: Header
    transfer_id: TransferId
    reason: Reason


class Trailer(Message, frozen=True):
    """Prefill: the last word. Without an error every byte was sent; with one, the rest came as one-byte messages."""

    header: Header
    transfer_id: TransferId
    digests: Annotated[bytes, Meta(max_length=8 * MAX_RUNS)] = b""  # 8 bytes per page
    note: Annotated[bytes, Meta(max_length=1 << 16)] = b""  # opaque to the transport
    error: Reason | None = None


KvMessage = Greeting | Offer | Landing | Refused | Trailer
