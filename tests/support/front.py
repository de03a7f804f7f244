"""What does a front get to see of its request?"""

from collections.abc import Callable
from dataclasses import dataclass, field

from coordinator.ledger import Moments
from coordinator.streams import StreamDelta, StreamEnd
from transport.messages.client import FailureCode


@dataclass
class Front:
    """A `Sink` that remembers, and does what a test wants when tokens come."""

    moments: Moments = field(default_factory=lambda: Moments("a", 0.0))
    deltas: list[StreamDelta] = field(default_factory=list)
    end: StreamEnd | None = None
    failure: tuple[FailureCode, str, str | None] | None = None
    on_delta: Callable[[], None] = lambda: None

    def delta(self, delta: StreamDelta) -> None:
        self.deltas.append(delta)
        self.on_delta()

    def done(self, end: StreamEnd) -> None:
        self.end = end

    def failed(self, code: FailureCode, message: str, param: str | None) -> None:
        self.failure = (code, message, param)

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas) + (self.end.text if self.end is not None else "")

    @property
    def token_ids(self) -> list[int]:
        return [token.token_id for delta in self.deltas for token in delta.tokens]

    @property
    def failure_code(self) -> FailureCode | None:
        return self.failure[0] if self.failure is not None else None
