"""What has this process done in the last minute or so?

A flight recorder: a bounded ring of small events, always on, one per process, written on its loop thread. Nobody reads
it until a timeline is asked for. An event carries durations; the moment at which it ended stands beside it on this
process's own clock and never leaves the process: what leaves is how long ago that was.
"""

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta, Struct

CAPACITY = 32_768
"""Events that a process keeps, about 8 MB: a minute of steps that take two milliseconds each."""
PART_EVENTS = 512
"""Events of one message: encoding, decoding or passing on so many takes well under a millisecond."""
MAX_ROWS = 1 << 16

_Seconds = Annotated[float, Meta(ge=0.0, le=1e9)]
_Count = Annotated[int, Meta(ge=0, lt=1 << 48)]
_RequestId = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
_Label = Annotated[str, Meta(min_length=1, max_length=200)]


class _Event(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False, tag=True):
    """Something that has ended; on the wire an array that begins with the class name."""


class Step(_Event, frozen=True):
    """One step of an engine, as its loop saw it: handed to the engine thread -> results back. One that was handed over
    while another was under way begins when the results of that are back: steps do not overlap."""

    duration_s: _Seconds
    decoding: _Count  # rows that feed one token
    prompt_tokens: _Count  # of the chunks beside them
    joined: Annotated[tuple[_RequestId, ...], Meta(max_length=MAX_ROWS)] = ()  # whose first decode step this is


class Chunk(_Event, frozen=True):
    """A prompt's share of a step: tokens `first` .. `first + tokens - 1`. It lasts as long as the step."""

    duration_s: _Seconds
    request_id: _RequestId
    first: _Count
    tokens: _Count


class Transfer(_Event, frozen=True):
    """A prompt's pages on their way, as the sender saw it: first piece given to the wire -> all settled."""

    duration_s: _Seconds
    request_id: _RequestId
    transfer_id: _Count
    nbytes: _Count
    pieces: _Count
    moving_s: _Seconds  # of that time with at least one piece under way
    ok: bool


class Arrival(_Event, frozen=True):
    """A request's way into a running batch; the three stages follow each other and end with its first step."""

    intake_s: _Seconds  # Admit received -> every page and digest in; 0 if the prompt was computed here
    verify_s: _Seconds
    join_s: _Seconds  # verified, or token 1 sampled here -> first decode step starts; 0 if it never joined
    request_id: _RequestId
    pages: _Count
    joined: bool


class LastToken(_Event, frozen=True):
    """A sequence has left the running batch."""

    request_id: _RequestId
    tokens: _Count  # of its answer, token 1 included


class InPhase(_Event, frozen=True):
    """A request was in one phase for so long; `still`: it has not left it yet."""

    duration_s: _Seconds
    request_id: _RequestId
    phase: _Label
    still: bool = False


class Gauge(_Event, frozen=True):
    """A number has changed; without a change it is told once, at the end of a recording."""

    name: _Label
    value: _Count
    was: _Count


Event = Step | Chunk | Transfer | Arrival | LastToken | InPhase | Gauge


class Recorded(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """An event as others hear of it. `ago_s`: its end -> the moment at which the recording was taken."""

    ago_s: _Seconds
    event: Event


Part = Annotated[tuple[Recorded, ...], Meta(max_length=PART_EVENTS)]


def length_s(event: Event) -> float:
    """Begin -> end; 0 for what has no length."""
    match event:
        case Step() | Chunk() | Transfer() | InPhase():
            return event.duration_s
        case Arrival():
            return event.intake_s + event.verify_s + event.join_s
        case LastToken() | Gauge():
            return 0.0


@dataclass(frozen=True, slots=True)
class Recording:
    """What a recorder held at one moment. `reaches_s`: how far back, if older events were dropped; else None."""

    taken_at: float
    reaches_s: float | None
    ended: tuple[float, ...]
    events: tuple[Event, ...]

    @property
    def parts(self) -> int:
        return -(-len(self.events) // PART_EVENTS)

    def part(self, number: int) -> tuple[Recorded, ...]:
        """Events of part `number`, from 0, each with its age; an event that ends later than the recording is new."""
        here = slice(number * PART_EVENTS, (number + 1) * PART_EVENTS)
        pairs = zip(self.ended[here], self.events[here], strict=True)
        return tuple(Recorded(max(self.taken_at - ended, 0.0), event) for ended, event in pairs)


class FlightRecorder:
    """The ring of one process."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        # Two rings and no pairs: floats and these events are nothing that the garbage collector would have to look at.
        self._ended: deque[float] = deque(maxlen=capacity)
        self._events: deque[Event] = deque(maxlen=capacity)
        self._gauges: dict[str, int] = {}
        self._capacity = capacity
        self._dropping = False

    def record(self, ended: float, event: Event) -> None:
        """`ended`: on the clock of this process, about now."""
        if len(self._events) == self._capacity:
            self._dropping = True
        self._ended.append(ended)
        self._events.append(event)

    def gauge(self, name: str, value: int, now: float) -> None:
        """Keep a number, if it is another one than last time."""
        was = self._gauges.get(name)
        if was != value:
            self._gauges[name] = value
            self.record(now, Gauge(name, value, value if was is None else was))

    def drop_gauge(self, name: str, now: float) -> None:
        """What it counted is gone: it falls to 0 and is not told of any more."""
        self.gauge(name, 0, now)
        self._gauges.pop(name, None)

    def since(self, last_s: float, now: float) -> Recording:
        """What has ended in the last `last_s` seconds, in the order of recording, and every gauge's last value."""
        ended = list(self._ended)
        start = bisect_left(ended, now - last_s)  # nearly in order: an event is recorded soon after its end
        events = list(self._events)[start:]
        last = [Gauge(name, value, value) for name, value in self._gauges.items()]
        return Recording(
            taken_at=now,
            reaches_s=now - ended[0] if self._dropping and start == 0 else None,
            ended=(*ended[start:], *(now for _ in last)),
            events=(*events, *last),
        )
