"""What did a peer say about a transfer before this worker was told of it?

The coordinator tells both workers at once, so whoever hears first may speak to one who knows nothing yet. Used by
`transport.kv` alone.
"""

from dataclasses import dataclass, field

from transport.kv_messages import Header, Landing, Offer, Refused, Trailer
from transport.messages.common import KvPeer

MAX_TRANSFERS = 4096
_MAX_OF_ONE_TRANSFER = 4  # an Offer and its Trailer, or a Landing and a Refused, and room for doubles

Incarnation = tuple[str, int]
"""Worker id and epoch: a restarted worker is another one."""

Held = Offer | Landing | Refused | Trailer


def incarnation(peer: KvPeer) -> Incarnation:
    return (peer.worker_id, peer.epoch)


def said_by(header: Header) -> Incarnation:
    return (header.sender, header.sender_epoch)


@dataclass(slots=True)
class _Entry:
    until_s: float
    messages: list[Held] = field(default_factory=list)


class EarlyMessages:
    """Messages by transfer, in the order in which they came, for at most `hold_s`; what is too much is dropped."""

    def __init__(self, hold_s: float) -> None:
        self._hold_s = hold_s
        self._entries: dict[int, _Entry] = {}  # oldest first

    def __len__(self) -> int:
        return len(self._entries)

    def hold(self, message: Held, now: float) -> None:
        self._drop_expired(now)
        entry = self._entries.get(message.transfer_id)
        if entry is None:
            if isinstance(message, Trailer) or len(self._entries) >= MAX_TRANSFERS:
                return  # a Trailer without its Offer belongs to a transfer that has ended here
            entry = self._entries[message.transfer_id] = _Entry(now + self._hold_s)
        if len(entry.messages) < _MAX_OF_ONE_TRANSFER:
            entry.messages.append(message)

    def take(self, transfer_id: int, now: float) -> list[Held]:
        self._drop_expired(now)
        entry = self._entries.pop(transfer_id, None)
        return entry.messages if entry is not None else []

    def _drop_expired(self, now: float) -> None:
        while self._entries:
            oldest = next(iter(self._entries))
            if self._entries[oldest].until_s > now:
                return
            del self._entries[oldest]
