"""What is kept of each request of an evaluation?

Pure. One `RequestResult` per request that was sent, with times on one clock, that of the client, in seconds since the
start of the run. It is one line of JSON; everything that is reported can be computed again from the lines.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum

import msgspec
from msgspec import Struct

from runtime.stages import Ledger


class Outcome(StrEnum):
    COMPLETED = "completed"  # the answer came to its end
    FAILED = "failed"  # an error of the server, of the connection, or a deadline
    REJECTED = "rejected"  # turned away before its first token: overloaded, draining
    CUT_OFF = "cut_off"  # the run ended first


class RequestResult(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    index: int
    arrival_s: float  # when the workload wanted it sent; in a closed loop, when its turn came
    sent_s: float  # when it was
    token_s: tuple[float, ...] = ()  # when each token was at the client; tokens of one chunk have one time
    end_s: float  # its last word: of the server, or ours
    outcome: Outcome = Outcome.COMPLETED
    error: str | None = None  # a code, then words
    prompt_tokens: int | None = None  # as the server counted; None: it did not say
    asked_tokens: int | None = None  # output tokens that the workload wanted
    ledger: Ledger | None = None  # the server's own durations, where it tells them


class Window(Struct, frozen=True, kw_only=True):
    """From `start_s` to `end_s`; the end is not in it."""

    start_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s

    def has(self, at_s: float) -> bool:
        return self.start_s <= at_s < self.end_s


def steady(results: Sequence[RequestResult], warm_up_s: float, cool_down_s: float) -> Window:
    """What is left of the arrivals without the first and the last seconds.

    Chosen by planned arrival, which the server cannot influence: to leave out who *ended* late leaves out the slow.

    Raises:
        ValueError: nothing is left.
    """
    if not results:
        raise ValueError("no requests")
    arrivals = [result.arrival_s for result in results]
    last = math.nextafter(max(arrivals) - cool_down_s, math.inf)  # the end of a window is not in it
    window = Window(start_s=min(arrivals) + warm_up_s, end_s=last)
    if not any(window.has(at) for at in arrivals):
        raise ValueError(
            f"no request arrives between {warm_up_s:g} s of warm-up and {cool_down_s:g} s of cool-down:"
            f" all of them arrive within {max(arrivals) - min(arrivals):g} s"
        )
    return window


def arriving(results: Iterable[RequestResult], window: Window) -> tuple[RequestResult, ...]:
    return tuple(result for result in results if window.has(result.arrival_s))


def to_lines(results: Iterable[RequestResult]) -> Iterator[bytes]:
    encoder = msgspec.json.Encoder()
    return (encoder.encode(result) + b"\n" for result in results)


def from_lines(lines: Iterable[bytes | str]) -> Iterator[RequestResult]:
    """
    Raises:
        msgspec.ValidationError: a line is not a `RequestResult`.
    """
    decoder = msgspec.json.Decoder(RequestResult)
    return (decoder.decode(line) for line in lines if line.strip())
