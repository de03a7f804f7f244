"""Is this a trace that a viewer draws right? Asked of the JSON, by somebody who knows the format and not our code."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_NS = 1000  # of a microsecond: times in the file have three digits behind the point


@dataclass(frozen=True)
class Arrow:
    """The kinds of line that it visits, as (process, line)."""

    id: str
    stops: tuple[tuple[str, str], ...]


def check_trace(trace: dict[str, Any]) -> list[Arrow]:
    """Its arrows.

    Raises:
        AssertionError: slices of a line overlap, an arrow has no slice at one of its ends, an asynchronous slice is not
            closed, times are negative or not in order, or a line or process has no name.
    """
    assert trace["displayTimeUnit"] in ("ms", "ns")
    events: list[dict[str, Any]] = trace["traceEvents"]
    times = [event["ts"] for event in events]
    assert times == sorted(times)
    assert all(ts >= 0 for ts in times)
    assert all(event.get("dur", 0) >= 0 for event in events)
    processes = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    lines = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert {event["pid"] for event in events} <= processes.keys()
    assert {(event["pid"], event["tid"]) for event in events if event["ph"] == "X"} == lines.keys()
    slices = _disjoint(event for event in events if event["ph"] == "X")
    _nested(event for event in events if event["ph"] in "be")
    return [
        Arrow(id_, tuple((processes[pid], lines[pid, tid]) for pid, tid in stops))
        for id_, stops in _arrows(events, slices)
    ]


def _ns(us: float) -> int:
    return round(us * _NS)


def _disjoint(events: Iterable[dict[str, Any]]) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """(begin, end) in nanoseconds of the slices of each line."""
    slices: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for event in events:
        begin, length = _ns(event["ts"]), _ns(event["dur"])
        of_line = slices[event["pid"], event["tid"]]
        assert not of_line or of_line[-1][1] <= begin, f"{event} begins before the one before it has ended"
        of_line.append((begin, begin + length))
    return slices


def _nested(events: Iterable[dict[str, Any]]) -> None:
    open_: dict[tuple[int, str], list[str]] = defaultdict(list)
    for event in events:
        stack = open_[event["pid"], event["id"]]
        if event["ph"] == "b":
            stack.append(event["name"])
        else:
            assert stack, f"{event} ends what has not begun"
            assert stack.pop() == event["name"], f"{event} ends something else"
    assert not any(open_.values()), f"never ended: {open_}"


def _arrows(
    events: list[dict[str, Any]], slices: dict[tuple[int, int], list[tuple[int, int]]]
) -> Iterable[tuple[str, list[tuple[int, int]]]]:
    flows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    drawn: set[tuple[int, int, int]] = set()  # slices that stand before this event in the file
    for event in events:
        if event["ph"] == "X":
            drawn.add((event["pid"], event["tid"], _ns(event["ts"])))
        elif event["ph"] in "stf":
            here, at = (event["pid"], event["tid"]), _ns(event["ts"])
            around = [begin for begin, end in slices[here] if begin <= at < end]
            assert len(around) == 1, f"{event} is in no slice"
            assert (*here, around[0]) in drawn, f"{event} stands before its slice"
            flows[event["id"]].append(event)
    for id_, flow in flows.items():
        kinds = "".join(event["ph"] for event in flow)
        assert kinds in ("sf", "stf"), f"arrow {id_} is {kinds}"
        yield id_, [(event["pid"], event["tid"]) for event in flow]
