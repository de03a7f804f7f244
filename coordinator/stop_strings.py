"""Has the text reached a stop string, and how much of it may the client see already?

Pure; one matcher per request, on the coordinator's loop. What it decides does not depend on how the text was cut into
increments: the stop string whose end comes first wins, and of several that end at the same place the longest one.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Increment:
    """Text that is safe to show, and the stop string that ended it; neither contains any part of that string."""

    text: str
    stop: str | None = None


class StopMatcher:
    """Fed with the text of one request; holds back what may be the beginning of a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        """
        Raises:
            ValueError: a stop string is empty.
        """
        if not all(stops):
            raise ValueError("a stop string has at least one character")
        self._stops = tuple(stops)
        self._most_held = max(map(len, stops), default=1) - 1
        self._held = ""

    def push(self, text: str) -> Increment:
        """Add text. After an increment with a stop string the request is over: nothing more is pushed."""
        text = self._held + text
        starts = [(text.find(stop), stop) for stop in self._stops]
        found = [(start + len(stop), start, stop) for start, stop in starts if start >= 0]
        if found:
            _, start, stop = min(found)
            self._held = ""
            return Increment(text[:start], stop)
        safe = len(text) - self._possible_start(text)
        self._held = text[safe:]
        return Increment(text[:safe])

    def flush(self) -> str:
        """The text ended without a stop string: what was still held back."""
        held, self._held = self._held, ""
        return held

    def _possible_start(self, text: str) -> int:
        """How many characters at the end of `text` are the beginning of a stop string, at most."""
        for count in range(min(self._most_held, len(text)), 0, -1):
            tail = text[-count:]
            if any(stop.startswith(tail) for stop in self._stops):
                return count
        return 0
