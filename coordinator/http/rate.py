"""May this client send another request now?

Pure. A token bucket per API key: `per_minute` on average, as many at once. One key's requests do not count for another.
"""

from dataclasses import dataclass, field

_ROUNDING = 1e-9


@dataclass(slots=True)
class RateLimit:
    """`per_minute` 0 is no limit. Owned by the gate; holds one entry per key, of which there are few."""

    per_minute: float
    _spent: dict[bytes, tuple[float, float]] = field(default_factory=dict)  # key -> (requests owed, as of when)

    def wait_s(self, key: bytes, now: float) -> float:
        """0 if the request may go on, and it is counted; otherwise the seconds until one may."""
        if self.per_minute <= 0:
            return 0.0
        owed, then = self._spent.get(key, (0.0, now))
        owed = max(0.0, owed - (now - then) * self.per_minute / 60)
        excess = owed + 1 - max(1.0, self.per_minute)
        if excess > _ROUNDING:
            self._spent[key] = (owed, now)
            return excess * 60 / self.per_minute
        self._spent[key] = (owed + 1, now)
        return 0.0
