"""On which line of a trace does a slice stand, so that no two slices of a line overlap?

Pure. Viewers draw the slices of one thread as a stack: what overlaps there without nesting is drawn wrong. Things that
happen at the same time (the chunks of a step, transfers) therefore get as many lines as there are of them at once.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

_SLACK_NS = 1000
"""Neighbours may overlap by that much after rounding: their moments were computed from durations."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Something that lasted; times in nanoseconds since the begin of the trace."""

    begin: int
    end: int
    name: str
    args: dict[str, Any] = field(default_factory=dict)
    request_id: int | None = None
    joined: tuple[int, ...] = ()  # steps: requests that decode for the first time


@dataclass(frozen=True, slots=True)
class Placed:
    """A slice on line `lane`, from 0."""

    lane: int
    slice: Slice


def pack(groups: Iterable[Sequence[Slice]]) -> list[Placed]:
    """Give every group the first line that is free for all of it; the slices of a group follow each other.

    A slice that begins before the one before it on its line has ended begins when that one ends.
    """
    ordered = sorted((group for group in groups if group), key=lambda group: group[0].begin)
    ends: list[int] = []
    placed: list[Placed] = []
    for group in ordered:
        lane = next((i for i, end in enumerate(ends) if end <= group[0].begin + _SLACK_NS), len(ends))
        if lane == len(ends):
            ends.append(0)
        for one in group:
            begin = max(one.begin, ends[lane])
            end = max(one.end, begin)
            moved = Slice(begin, end, one.name, one.args, one.request_id, one.joined)
            placed.append(Placed(lane, moved))
            ends[lane] = end
    return placed
