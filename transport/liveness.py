"""Which peers have not spoken for too long?

The Paranoid Pirate pattern of the ZeroMQ guide, as a table without a clock: whoever receives from a peer calls `saw`,
whoever has a timer calls `expired`. UCX reports a killed peer late or never and a stopped one never, so this table is
the only judge of who is alive. Called by the coordinator for workers and clients.
"""

from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Liveness(Generic[K]):
    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._last_seen: dict[K, float] = {}

    def __contains__(self, peer: K) -> bool:
        return peer in self._last_seen

    def saw(self, peer: K, now: float) -> None:
        self._last_seen[peer] = now

    def forget(self, peer: K) -> None:
        self._last_seen.pop(peer, None)

    def expired(self, now: float) -> list[K]:
        """The peers that have been silent for longer than the timeout; each is reported once and forgotten."""
        silent = [peer for peer, seen in self._last_seen.items() if now - seen > self.timeout_s]
        for peer in silent:
            del self._last_seen[peer]
        return silent
