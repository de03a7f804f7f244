"""Does a recording become a trace that viewers draw right, with every process on one clock?"""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.trace_events import TraceDocument, trace_document
from runtime.flight import (
    Arrival,
    Chunk,
    Event,
    Gauge,
    InPhase,
    LastToken,
    Recorded,
    Step,
    Transfer,
)
from tests.support.trace import Arrow, check_trace
from transport.messages.client import TimelinePart
from transport.messages.common import Process

ROLES: dict[str, Process] = {"coordinator": "coordinator", "p0": "prefill", "p1": "prefill", "d0": "decode"}


def part(process: str, *events: tuple[float, Event], delay_s: float = 0.0, uncertainty_s: float = 0.0) -> TimelinePart:
    """`events`: (how long ago it ended, event)."""
    return TimelinePart(
        process=process,
        role=ROLES[process],
        pid=4711,
        delay_s=delay_s,
        uncertainty_s=uncertainty_s,
        events=tuple(Recorded(ago_s, event) for ago_s, event in events),
    )


def written(document: TraceDocument) -> dict[str, Any]:
    """The file as others read it."""
    read = json.loads(msgspec.json.encode(document))
    assert isinstance(read, dict)
    return read


def events(trace: dict[str, Any], kind: str, process: int | None = None) -> list[dict[str, Any]]:
    return [e for e in trace["traceEvents"] if e["ph"] == kind and process in (None, e["pid"])]


HANDED_OFF = (
    part(
        "coordinator",
        (9.0, InPhase(0.0, 7, "queued")),
        (6.9, InPhase(2.1, 7, "prefilling")),
        (4.0, InPhase(2.9, 7, "handing_off")),
        (0.0, InPhase(4.0, 7, "decoding", still=True)),
    ),
    part(
        "p0",
        (8.0, Step(1.0, 0, 512)),
        (8.0, Chunk(1.0, 7, 0, 512)),
        (7.0, Step(1.0, 0, 100)),
        (7.0, Chunk(1.0, 7, 512, 88)),
        (7.0, Chunk(1.0, 8, 0, 12)),
        (6.0, Transfer(1.5, 7, 3, 4096, 2, 1.0, ok=True)),
    ),
    part(
        "d0", (5.0, Arrival(3.5, 0.25, 0.25, 7, 40, joined=True)), (4.0, Step(1.0, 1, 0, (7,))), (1.0, LastToken(7, 4))
    ),
)


def test_a_request_that_was_handed_off() -> None:
    trace = written(trace_document(HANDED_OFF))
    assert check_trace(trace) == [Arrow("0x7", (("p0", "chunks"), ("p0", "transfers"), ("d0", "steps")))]
    start, over, finish = (next(e for e in trace["traceEvents"] if e["ph"] == kind) for kind in "stf")
    assert start["ts"] == pytest.approx(1e6)  # the end of the first chunk: the second had not ended when pages left
    assert (over["ts"], finish["ts"]) == (pytest.approx(1.5e6), pytest.approx(4e6))
    assert [e["name"] for e in events(trace, "b")] == ["request 7", "queued", "prefilling", "handing_off", "decoding"]
    assert events(trace, "b")[0]["args"] == {"request": 7, "ended": False}
    chunks = {(e["args"]["request"], e["args"]["first token"]): e for e in events(trace, "X") if e["cat"] == "chunks"}
    assert chunks[7, 512]["tid"] != chunks[8, 0]["tid"], "chunks of one step stand on lines of their own"
    assert [e["name"] for e in events(trace, "X", 3)] == ["intake 7", "verify 7", "join 7", "decode 1"]
    assert trace["otherData"]["arrows"] == 1


def test_a_process_is_shifted_by_its_delay_and_says_how_well_it_is_known() -> None:
    trace = written(
        trace_document(
            [
                part("coordinator", (1.0, InPhase(1.0, 1, "queued"))),
                part("p0", (1.0, Step(0.5, 0, 8)), delay_s=0.25, uncertainty_s=0.125),
            ]
        )
    )
    step = events(trace, "X")[0]
    assert (step["ts"], step["dur"]) == (0.75e6, 0.5e6)  # ends 0.25 s after the coordinator's event, which began at 0
    assert [p["uncertainty_s"] for p in trace["otherData"]["processes"]] == [0.0, 0.125]
    labels = [e["args"]["labels"] for e in events(trace, "M") if e["name"] == "process_labels"]
    assert labels == ["pid 4711, ±0.000 ms", "pid 4711, ±125.000 ms"]


def test_a_prompt_computed_by_its_decode_worker_has_no_transfer() -> None:
    local = part(
        "d0",
        (5.0, Step(1.0, 1, 16)),
        (5.0, Chunk(1.0, 7, 0, 16)),
        (4.0, Step(1.0, 1, 4)),
        (4.0, Chunk(1.0, 7, 16, 4)),
        (4.0, Arrival(0.0, 0.0, 0.0, 7, 2, joined=True)),
        (3.0, Step(1.0, 2, 0, (7,))),
    )
    trace = written(trace_document([local]))
    assert check_trace(trace) == [Arrow("0x7", (("d0", "chunks"), ("d0", "steps")))]


def test_a_request_that_was_tried_again_is_followed_on_its_last_way() -> None:
    lost = part("p0", (8.0, Chunk(1.0, 7, 0, 16)), (7.0, Transfer(0.5, 7, 3, 64, 1, 0.5, ok=False)))
    again = part("p1", (5.0, Chunk(1.0, 7, 0, 16)), (4.0, Transfer(0.5, 7, 4, 64, 1, 0.5, ok=True)))
    trace = written(trace_document([lost, again, part("d0", (2.0, Step(1.0, 1, 0, (7,))))]))
    assert check_trace(trace)[0].stops[0] == ("p1", "chunks")


@pytest.mark.parametrize(
    "others",
    [
        (),  # the prefill worker did not answer
        (part("p0", (6.0, Transfer(1.5, 7, 3, 64, 1, 1.0, ok=True))),),  # its chunks have left the ring
        (part("p0", (9.0, Chunk(1.0, 7, 0, 16)), (3.0, Transfer(0.5, 7, 3, 64, 1, 0.5, ok=True))),),  # clocks differ
    ],
)
def test_an_arrow_without_an_end_is_left_out_and_counted(others: tuple[TimelinePart, ...]) -> None:
    trace = written(trace_document([*others, part("d0", (4.0, Step(1.0, 1, 0, (7,))))]))
    assert check_trace(trace) == []
    assert trace["otherData"]["arrows_left_out"] == 1


def test_where_clocks_differ_a_little_an_arrow_ends_inside_the_step() -> None:
    p0 = part("p0", (9.0, Chunk(1.0, 7, 0, 16)), (4.0, Transfer(0.5, 7, 3, 64, 1, 0.5, ok=True)))
    trace = written(trace_document([p0, part("d0", (4.0, Step(1.0, 1, 0, (7,))))]))
    assert check_trace(trace) == [Arrow("0x7", (("p0", "chunks"), ("p0", "transfers"), ("d0", "steps")))]
    assert trace["otherData"]["arrows_left_out"] == 0


def test_a_counter_begins_with_what_it_was_before_it_changed() -> None:
    p0 = part("p0", (3.0, Step(2.0, 0, 8)), (2.0, Gauge("free pages", 5, 9)), (0.0, Gauge("free pages", 5, 5)))
    counts = [(e["ts"], e["args"]["value"]) for e in events(written(trace_document([p0])), "C")]
    assert counts == [(0.0, 9), (3e6, 5), (5e6, 5)]


def test_nothing_recorded_is_a_trace_too() -> None:
    trace = written(trace_document([part("coordinator")], missing=("p0",)))
    assert check_trace(trace) == []
    assert trace["otherData"]["missing"] == ["p0"]
    assert check_trace(written(trace_document([]))) == []


seconds = st.one_of(st.sampled_from([0.0, 0.1, 0.2, 0.3, 1 / 3]), st.floats(0.0, 20.0))
ids = st.integers(0, 4)
counts = st.integers(0, 1000)
recorded: st.SearchStrategy[Event] = st.one_of(
    st.builds(Step, seconds, counts, counts, st.lists(ids, max_size=3).map(tuple)),
    st.builds(Chunk, seconds, ids, counts, counts),
    st.builds(Transfer, seconds, ids, counts, counts, counts, seconds, st.booleans()),
    st.builds(Arrival, seconds, seconds, seconds, ids, counts, st.booleans()),
    st.builds(LastToken, ids, counts),
    st.builds(InPhase, seconds, ids, st.sampled_from(["queued", "decoding"]), st.booleans()),
    st.builds(Gauge, st.sampled_from(["free pages", "queued"]), counts, counts),
)
parts = st.builds(
    lambda process, told, delay_s: part(process, *told, delay_s=delay_s),
    st.sampled_from(sorted(ROLES)),
    st.lists(st.tuples(seconds, recorded), max_size=20),
    st.sampled_from([0.0, 0.125]),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(parts, max_size=6))
def test_any_recording_is_drawn_right(told: list[TimelinePart]) -> None:
    trace = written(trace_document(told))
    arrows = check_trace(trace)
    joined = {i for p in told for one in p.events if isinstance(one.event, Step) for i in one.event.joined}
    assert len(arrows) == trace["otherData"]["arrows"]
    assert len(arrows) + trace["otherData"]["arrows_left_out"] == len(joined)
    steps = sum(isinstance(one.event, Step) for p in told for one in p.events)
    assert sum(e["cat"] == "steps" for e in events(trace, "X")) == steps, "no step is lost"
