"""Does a process tell all parts of one recording, taken at the moment of the first question?"""

from runtime.flight import PART_EVENTS, FlightRecorder, LastToken
from tests.support.scripted_server import ManualClock
from transport.messages.worker import AskRecording, RecordingPart
from transport.playback import Playback


def told(playback: Playback, part: int, timeline_id: int = 1, last_s: float = 1e6) -> RecordingPart:
    return playback.answer(AskRecording(timeline_id=timeline_id, last_s=last_s, part=part))


def test_parts_are_of_the_moment_of_the_first_question() -> None:
    clock, flight = ManualClock(), FlightRecorder()
    for i in range(PART_EVENTS + 1):
        flight.record(clock.time - 1.0, LastToken(i, 0))
    playback = Playback(flight, clock)
    first = told(playback, 0)
    assert (first.part, first.parts, first.events) == (0, 2, ())
    clock.time += 5.0
    flight.record(clock.time, LastToken(10_000, 0))
    events = [one for part in (1, 2) for one in told(playback, part).events]
    assert [one.event for one in events] == [LastToken(i, 0) for i in range(PART_EVENTS + 1)]
    assert {one.ago_s for one in events} == {1.0}


def test_a_new_question_takes_a_new_recording() -> None:
    clock, flight = ManualClock(), FlightRecorder()
    flight.record(clock.time, LastToken(1, 0))
    playback = Playback(flight, clock)
    told(playback, 0)
    clock.time += 5.0
    flight.record(clock.time, LastToken(2, 0))
    assert told(playback, 0, timeline_id=2, last_s=1.0).parts == 1
    part = told(playback, 1, timeline_id=2)
    assert (part.timeline_id, [one.event for one in part.events]) == (2, [LastToken(2, 0)])


def test_an_empty_recorder_has_no_parts() -> None:
    playback = Playback(FlightRecorder(), ManualClock())
    assert told(playback, 0).parts == 0


def test_a_part_of_no_recording_takes_none() -> None:
    """Its events would count back from another moment than the one that part 0 was answered at."""
    clock, flight = ManualClock(), FlightRecorder()
    flight.record(clock.time, LastToken(1, 0))
    playback = Playback(flight, clock)
    assert (told(playback, 1).parts, told(playback, 1).events) == (0, ())
    assert told(playback, 0).parts == 1
    assert len(told(playback, 1).events) == 1
    assert told(playback, 1).parts == 0, "it was told to its end"
