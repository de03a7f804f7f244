"""Where do the requests of an evaluation come from, at any rate and from any number on?

Pure. A source is asked again and again by a campaign; the same numbers are the same requests.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Protocol, TypeVar

from msgspec import Struct

from launch.evaluation.arrivals import Arrivals, ClosedLoop, TraceClock, arrive
from launch.evaluation.lengths import Fixed, Lengths, LogNormal, Uniform
from launch.evaluation.scaling import Scale
from launch.evaluation.traces import PromptRecord, TraceRecord
from launch.evaluation.workload import Workload, from_prompts, from_trace, synthetic

_MOST_REQUESTS = 1_000_000
_Record = TypeVar("_Record")
_Number = TypeVar("_Number", int, float)


class NoMoreRequests(ValueError):
    """A file of requests has been used up; no prompt is sent twice."""


class Source(Protocol):
    def workload(self, arrivals: Arrivals, count: int, first: int) -> Workload:
        """
        Raises:
            NoMoreRequests: the source does not hold so many.
        """
        ...

    def words(self) -> tuple[str, ...]:
        """What a report has to say about it."""
        ...


class Synthetic(Struct, frozen=True, kw_only=True):
    prompts: Lengths
    outputs: Lengths
    seed: int

    def workload(self, arrivals: Arrivals, count: int, first: int) -> Workload:
        return synthetic(self.prompts, self.outputs, arrivals, count, self.seed, first=first)

    def words(self) -> tuple[str, ...]:
        return (
            f"synthetic: prompts {in_words(self.prompts)}, answers {in_words(self.outputs)}",
            f"token ids drawn at random, no two prompts alike; seed {self.seed}",
        )

    @property
    def longest(self) -> int:
        return _longest(self.prompts) + _longest(self.outputs)


class Trace(Struct, frozen=True, kw_only=True):
    name: str
    records: tuple[TraceRecord, ...]
    scale: Scale
    seed: int

    def workload(self, arrivals: Arrivals, count: int, first: int) -> Workload:
        return from_trace(_slice(self.records, count, first), arrivals, self.seed, self.scale, first=first)

    def words(self) -> tuple[str, ...]:
        return (f"{self.name}; token ids drawn at random, seed {self.seed}", *self.scale.notes(self.records))


class Prompts(Struct, frozen=True, kw_only=True):
    name: str
    records: tuple[PromptRecord, ...]
    outputs: Lengths
    seed: int

    def workload(self, arrivals: Arrivals, count: int, first: int) -> Workload:
        return from_prompts(_slice(self.records, count, first), self.outputs, arrivals, self.seed, first=first)

    def words(self) -> tuple[str, ...]:
        return (f"prompts of {self.name} as they stand; answers {in_words(self.outputs)} where it does not say",)


def _slice(records: Sequence[_Record], count: int, first: int) -> Sequence[_Record]:
    if first + count > len(records):
        raise NoMoreRequests(f"{count} requests from number {first} on are asked for, and there are {len(records)}")
    return records[first : first + count]


def requests_within(seconds: float, arrivals: Arrivals, seed: int, recorded_s: Sequence[float] = ()) -> int:
    """How many arrive in that time.

    Raises:
        ValueError: a closed loop has no plan that would say; or none does.
    """
    if isinstance(arrivals, ClosedLoop):
        raise ValueError("a closed loop has no planned arrivals: say --requests instead of --duration")  # noqa: TRY004 - of values, for a person
    if isinstance(arrivals, TraceClock):
        starts: Sequence[float] = arrive(arrivals, len(recorded_s), seed, recorded_s=recorded_s)
        count = bisect_right(starts, seconds)
    else:
        guess = 64
        while (count := bisect_right(arrive(arrivals, guess, seed), seconds)) == guess < _MOST_REQUESTS:
            guess *= 4
    if count == 0:
        raise ValueError(f"no request arrives within {seconds:g} s")
    return count


def parse_lengths(text: str) -> Lengths:
    """`128`, `64-512`, or `lognormal:MEDIAN:SIGMA:LOW-HIGH`.

    Raises:
        ValueError: it is none of these.
    """
    try:
        kind, _, rest = text.partition(":")
        if kind == "lognormal":
            median, sigma, bounds = rest.split(":")
            low, high = _bounds(bounds)
            return LogNormal(median_tokens=_positive(float(median)), sigma=float(sigma), low=low, high=high)
        if "-" in text:
            low, high = _bounds(text)
            return Uniform(low=low, high=high)
        return Fixed(tokens=_positive(int(text)))
    except ValueError as error:
        raise ValueError(
            f"{text!r} is no length: say 128, or 64-512 (uniform), or lognormal:MEDIAN:SIGMA:LOW-HIGH ({error})"
        ) from error


def parse_scale(text: str) -> int:
    """`1/8`, `0.125` or `64/512`: the block of 512 tokens becomes so many.

    Raises:
        ValueError: it is no share from 1/512 to 1.
    """
    above, slash, below = text.partition("/")
    try:
        share = float(above) / (float(below) if slash else 1.0)
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"--scale {text}: say a share such as 1/8") from error
    block_tokens = round(share * 512)
    if not 1 <= block_tokens <= 512:
        raise ValueError(f"--scale {text}: lengths can shrink to 1/512 at most, and not grow")
    return block_tokens


def in_words(lengths: Lengths) -> str:
    match lengths:
        case Fixed(tokens=tokens):
            return f"of {tokens} tokens"
        case Uniform(low=low, high=high):
            return f"of {low} to {high} tokens, uniform"
        case LogNormal(median_tokens=median, sigma=sigma, low=low, high=high):
            return f"log-normal around {median:g} tokens (sigma {sigma:g}), {low} to {high}"


def _longest(lengths: Lengths) -> int:
    return lengths.tokens if isinstance(lengths, Fixed) else lengths.high


def _bounds(text: str) -> tuple[int, int]:
    low, high = text.split("-")
    return _positive(int(low)), _positive(int(high))


def _positive(number: _Number) -> _Number:
    if number <= 0:
        raise ValueError("a length is above 0")
    return number
