"""How does a process tell others what its flight recorder holds?

It is asked for one part after another. Part 0 takes the recording and is answered at once and with nothing in it, so
that the round trip says how well its moment is known; the parts behind it are cut from what was taken then.
"""

from runtime.clock import Clock
from runtime.flight import FlightRecorder, Recording
from transport.messages.worker import AskRecording, RecordingPart


class Playback:
    """Holds the recording that is being told; a new question for part 0 replaces it. Loop thread only."""

    def __init__(self, flight: FlightRecorder, clock: Clock) -> None:
        self._flight = flight
        self._clock = clock
        self._recording: Recording | None = None

    def answer(self, ask: AskRecording) -> RecordingPart:
        """The part that was asked for; of no parts, if there is no recording that it could be of."""
        if ask.part == 0:
            self._recording = self._flight.since(ask.last_s, self._clock.now())
        recording = self._recording
        if recording is None:
            return RecordingPart(timeline_id=ask.timeline_id, part=ask.part, parts=0)
        events = recording.part(ask.part - 1) if ask.part else ()
        if ask.part >= recording.parts:
            self._recording = None
        return RecordingPart(
            timeline_id=ask.timeline_id,
            part=ask.part,
            parts=recording.parts,
            reaches_s=recording.reaches_s,
            events=events,
        )
