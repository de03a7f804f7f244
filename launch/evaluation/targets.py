"""What does the runner need of a server?

A `Target` turns a request of the workload into bytes ahead of time, and asks it when its time has come. What arrives
is written into a `Reply`, which belongs to the runner: whatever was measured is kept when a run is cut off. Times are
those of the runner's clock. `launch.evaluation.cell_target` and `launch.evaluation.http_target` are the two that exist.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from launch.evaluation.results import Outcome
from runtime.stages import Ledger


@dataclass(slots=True)
class Reply:
    """One request while it is under way."""

    sent_at: float  # the target sets it anew when the request goes to the connection
    token_at: list[float] = field(default_factory=list)
    ended_at: float | None = None  # None: no last word yet
    outcome: Outcome = Outcome.COMPLETED
    error: str | None = None
    prompt_tokens: int | None = None
    ledger: Ledger | None = None

    def end(self, at: float, error: str | None = None, *, rejected: bool = False) -> None:
        """The last word. A request that got a token was not turned away."""
        self.ended_at = at
        self.error = error
        if error is not None:
            self.outcome = Outcome.REJECTED if rejected and not self.token_at else Outcome.FAILED


class Target(Protocol):
    def encode(self, prompt: str | Sequence[int], output_tokens: int) -> bytes:
        """The request as it will be sent: greedy, and exactly so many tokens where the server can be told so."""
        ...

    async def ask(self, request: bytes, reply: Reply) -> None:
        """Fill `reply` until its last word; every error of the server or the connection is one. Cancelling this
        cancels the request at the server."""
        ...

    def notes(self) -> tuple[str, ...]:
        """In words, what a report has to say about how this server was asked and counted."""
        ...
