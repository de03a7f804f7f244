"""What does a decode worker's flight recorder keep?

Steps with the chunks of its own prompts, how requests get into the batch and leave it, and how full pool and batch are.
"""

from collections.abc import Sequence

from decode_worker.local import LocalPrompt
from decode_worker.running import RunningSequence
from engine.chunking import Chunk
from engine.pages import PageAllocator
from runtime import flight
from runtime.stages import DecodeStages


class DecodeFlight(flight.FlightRecorder):
    def joining(self, now: float, step: Sequence[RunningSequence]) -> tuple[int, ...]:
        """The requests of a step that is about to start, `now`, whose first one it is."""
        new = [sequence for sequence in step if sequence.first_step_at == now]
        for one in new:
            taken_in, join_s, pages = one.intake, now - one.joined_at, len(one.pages)
            arrival = flight.Arrival(taken_in.intake_s, taken_in.verify_s, join_s, one.request_id, pages, joined=True)
            self.record(now, arrival)
        return tuple(one.request_id for one in new)

    def step(
        self,
        began: float,
        ended: float,
        decoding: int,
        chunks: Sequence[Chunk[LocalPrompt]],
        joined: tuple[int, ...],
    ) -> None:
        length = ended - began
        self.record(ended, flight.Step(length, decoding, sum(chunk.count for chunk in chunks), joined))
        for chunk in chunks:
            self.record(ended, flight.Chunk(length, chunk.prompt.request_id, chunk.start, chunk.count))

    def levels(self, now: float, pool: PageAllocator, running: int, arriving: int, local: int) -> None:
        """Between two steps, and when the batch falls idle."""
        free, quarantined = pool.free_pages, pool.quarantined_pages
        self.gauge("free pages", free, now)
        self.gauge("reserved pages", pool.total_pages - free - quarantined, now)
        self.gauge("quarantined pages", quarantined, now)
        self.gauge("running", running, now)
        self.gauge("arriving", arriving, now)
        self.gauge("prompts", local, now)

    def not_joined(self, ended: float, request_id: int, pages: int, stages: DecodeStages) -> None:
        """Its hand-off failed, or it was cancelled meanwhile."""
        self.record(ended, flight.Arrival(stages.intake_s, stages.verify_s, 0.0, request_id, pages, joined=False))

    def left(self, now: float, sequence: RunningSequence) -> None:
        self.record(now, flight.LastToken(sequence.request_id, len(sequence.output)))
