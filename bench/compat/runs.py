"""What is kept of one run of one tool?

Pure.
"""

from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from bench.compat.agreement import Agreement
from bench.compat.tool import Counted


class Relaying(Struct, frozen=True):
    """Seconds that the tap held a piece, from its arrival until it was written on."""

    pieces: int
    median_s: float
    p99_s: float
    max_s: float


def summed(relayed_s: Sequence[float]) -> Relaying:
    """Of one piece or more."""
    median_s, p99_s, max_s = np.percentile(relayed_s, [50, 99, 100])
    return Relaying(len(relayed_s), float(median_s), float(p99_s), float(max_s))


class Run(Struct, frozen=True, kw_only=True):
    """One run of one tool, through a tap."""

    tool: str
    version: str
    concurrency: int
    output_spread: int  # standard deviation of the tokens of an answer
    load_average: float  # of the minute before
    command: str
    reported: Counted
    server: Counted
    agreement: Agreement | None  # None: the tool measures no times
    relaying: Relaying

    @property
    def tokens_agree(self) -> bool:
        ours, theirs = self.server, self.reported
        return (ours.requests, ours.prompt_tokens, ours.completion_tokens) == (
            theirs.requests,
            theirs.prompt_tokens,
            theirs.completion_tokens,
        )
