"""What does a prefill worker's flight recorder keep?

Steps with the chunks of their prompts, transfers, and how full the pool and the queue are.
"""

from collections.abc import Sequence

from engine.chunking import Chunk
from engine.pages import PageAllocator
from prefill_worker.handoff import HandOffResult
from prefill_worker.prompt import Prompt
from runtime import flight
from transport.messages.worker import Prefill


class PrefillFlight(flight.FlightRecorder):
    def step(self, began: float, ended: float, chunks: Sequence[Chunk[Prompt]]) -> None:
        length = ended - began
        self.record(ended, flight.Step(length, 0, sum(chunk.count for chunk in chunks)))
        for chunk in chunks:
            self.record(ended, flight.Chunk(length, chunk.prompt.request_id, chunk.start, chunk.count))

    def levels(self, now: float, pool: PageAllocator, prompts: int, handoffs: int) -> None:
        """Between two steps. `handoffs` are those of prompts still computed, too."""
        free, quarantined = pool.free_pages, pool.quarantined_pages
        self.gauge("free pages", free, now)
        self.gauge("reserved pages", pool.total_pages - free - quarantined, now)
        self.gauge("quarantined pages", quarantined, now)
        self.gauge("prompts", prompts, now)
        self.gauge("hand-offs", handoffs, now)

    def transfer(self, ended: float, request: Prefill, result: HandOffResult) -> None:
        if result.pieces:
            ok = result.error is None
            self.record(
                ended,
                flight.Transfer(
                    result.span_s,
                    request.request_id,
                    request.transfer_id,
                    result.nbytes,
                    result.pieces,
                    result.seconds,
                    ok,
                ),
            )
