"""Does a flight recorder keep the last so many events, and does it tell their ages and not their times?"""

import pytest

from runtime.flight import PART_EVENTS, Arrival, FlightRecorder, Gauge, InPhase, LastToken, Recorded, Step, length_s


def full(events: int, capacity: int = 8) -> FlightRecorder:
    """One event a second, from second 1 on; event `i` is of request `i`."""
    recorder = FlightRecorder(capacity)
    for second in range(1, events + 1):
        recorder.record(float(second), LastToken(second, 0))
    return recorder


def requests(recorder: FlightRecorder, last_s: float, now: float) -> list[int]:
    return [event.request_id for event in recorder.since(last_s, now).events if isinstance(event, LastToken)]


def test_the_oldest_events_make_room() -> None:
    assert requests(full(7), 100.0, 20.0) == [1, 2, 3, 4, 5, 6, 7]
    assert requests(full(20), 100.0, 20.0) == [13, 14, 15, 16, 17, 18, 19, 20]


def test_only_a_recording_that_lacks_something_says_how_far_it_reaches() -> None:
    assert full(8).since(100.0, 20.0).reaches_s is None  # full, but nothing was dropped
    assert full(9).since(100.0, 20.0).reaches_s == 18.0
    assert full(9).since(5.0, 10.0).reaches_s is None  # everything of the last five seconds is there


@pytest.mark.parametrize(("last_s", "expected"), [(0.0, [10]), (2.5, [8, 9, 10]), (3.0, [7, 8, 9, 10])])
def test_a_recording_is_what_has_ended_since(last_s: float, expected: list[int]) -> None:
    assert requests(full(10), last_s, 10.0) == expected


def test_ages_count_back_from_the_recording_whatever_the_clock_says() -> None:
    recorded = [full(3).since(100.0, 10.0).part(0)]
    shifted = FlightRecorder()
    for second in range(1, 4):
        shifted.record(1e6 + second, LastToken(second, 0))
    recorded.append(shifted.since(100.0, 1e6 + 10).part(0))
    assert recorded[0] == recorded[1] == tuple(Recorded(10.0 - i, LastToken(i, 0)) for i in (1, 2, 3))


def test_no_part_is_larger_than_a_message_may_be_and_none_is_lost() -> None:
    recording = full(2 * PART_EVENTS + 1, capacity=4 * PART_EVENTS).since(1e6, 1e6)
    parts = [recording.part(number) for number in range(recording.parts)]
    assert [len(part) for part in parts] == [PART_EVENTS, PART_EVENTS, 1]
    assert [one.event for part in parts for one in part] == list(recording.events)
    assert recording.part(3) == ()


def test_what_is_recorded_afterwards_does_not_change_a_recording() -> None:
    recorder = full(3)
    recording = recorder.since(100.0, 10.0)
    for second in range(20, 40):
        recorder.record(float(second), LastToken(second, 0))
    assert [one.event for one in recording.part(0)] == [LastToken(i, 0) for i in (1, 2, 3)]


def test_a_gauge_is_kept_when_it_changes_and_told_once_in_any_case() -> None:
    recorder = FlightRecorder()
    for second, value in enumerate([5, 5, 5, 3, 3]):
        recorder.gauge("free pages", value, float(second))
    told = [(one.ago_s, one.event) for one in recorder.since(100.0, 10.0).part(0)]
    assert told == [
        (10.0, Gauge("free pages", 5, 5)),
        (7.0, Gauge("free pages", 3, 5)),
        (0.0, Gauge("free pages", 3, 3)),
    ]
    assert recorder.since(1.0, 10.0).events == (Gauge("free pages", 3, 3),)


def test_lengths() -> None:
    assert length_s(Step(0.5, 1, 0)) == 0.5
    assert length_s(Arrival(0.5, 0.25, 0.125, 1, 2, joined=True)) == 0.875
    assert length_s(InPhase(2.0, 1, "queued")) == 2.0
    assert length_s(LastToken(1, 2)) == length_s(Gauge("x", 1, 0)) == 0.0
