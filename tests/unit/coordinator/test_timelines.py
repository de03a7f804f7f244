"""Is every process placed on the coordinator's clock, asked for one part at a time, and left out when it is silent?"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable

import pytest

from coordinator.timelines import ANSWER_S, Timelines
from runtime.flight import PART_EVENTS, FlightRecorder, LastToken, Recorded
from tests.support.scripted_server import ManualClock
from transport.control import Sent
from transport.messages.client import TimelineEnd, TimelinePart, ToClient, WorkerStatus
from transport.messages.worker import AskRecording, RecordingPart, ToWorker

EVENTS = (Recorded(0.25, LastToken(1, 2)),)


def status(worker_id: str) -> WorkerStatus:
    return WorkerStatus(
        worker_id=worker_id,
        role="prefill" if worker_id.startswith("p") else "decode",
        pid=4711,
        total_pages=8,
        free_pages=8,
        reserved_pages=0,
        quarantined_pages=0,
        running=0,
        waiting=0,
    )


class Bench:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.flight = FlightRecorder()
        self.asked: list[tuple[str, int]] = []
        self.said: list[TimelinePart | TimelineEnd] = []
        self.reads = Sent.OK
        self.timelines = Timelines(self.flight, self.clock, self._tell)

    def _tell(self, worker_id: str, message: ToWorker) -> None:
        assert isinstance(message, AskRecording)
        self.asked.append((worker_id, message.part))

    def _say(self, message: ToClient) -> Sent:
        assert isinstance(message, TimelinePart | TimelineEnd)
        self.said.append(message)
        return self.reads

    async def ask(self, *worker_ids: str) -> None:
        self.timelines.ask(10.0, lambda: [status(worker_id) for worker_id in worker_ids], self._say)
        await self.turns()

    async def turns(self) -> None:
        """Whatever the loop has been given to do."""
        for _ in range(10):
            await asyncio.sleep(0)

    async def answer(self, worker_id: str, part: int, parts: int, timeline_id: int = 1) -> None:
        self.timelines.told(
            worker_id,
            RecordingPart(timeline_id=timeline_id, part=part, parts=parts, events=EVENTS if part else ()),
        )
        await self.turns()

    async def waited(self) -> None:
        """Longer than an answer may take."""
        self.clock.time += ANSWER_S + 0.01
        for _ in range(2):
            self.timelines.tick(self.clock.time)
        await self.turns()

    @property
    def of_workers(self) -> list[TimelinePart]:
        return [word for word in self.said if isinstance(word, TimelinePart) and word.role != "coordinator"]


def play(body: Callable[[Bench], Awaitable[None]]) -> None:
    async def main() -> None:
        await body(Bench())

    asyncio.run(main())


def test_a_process_is_placed_half_a_round_trip_after_the_question() -> None:
    async def body(bench: Bench) -> None:
        await bench.ask("p0", "d0")
        bench.clock.time += 0.5
        await bench.answer("p0", 0, 1)
        bench.clock.time += 1.5  # its parts may take their time: they count back from the first answer
        await bench.answer("d0", 0, 1)
        await bench.answer("p0", 1, 1)
        await bench.answer("d0", 1, 1)
        placed = {part.process: (part.delay_s, part.uncertainty_s) for part in bench.of_workers}
        assert placed == {"p0": (0.25, 0.25), "d0": (1.0, 1.0)}
        assert [part.events for part in bench.of_workers] == [EVENTS, EVENTS]
        assert bench.said[-1] == TimelineEnd()

    play(body)


def test_one_part_at_a_time_of_one_worker_at_a_time() -> None:
    async def body(bench: Bench) -> None:
        await bench.ask("p0", "d0")
        assert bench.asked == [("p0", 0), ("d0", 0)]
        await bench.answer("d0", 0, 2)
        await bench.answer("p0", 0, 2)
        for asked in (("d0", 1), ("d0", 2), ("p0", 1), ("p0", 2)):
            assert bench.asked[-1] == asked
            await bench.answer(*asked, 2)
        assert len(bench.asked) == 6
        assert bench.said[-1] == TimelineEnd()

    play(body)


def test_the_coordinator_tells_its_own_in_parts_too() -> None:
    async def body(bench: Bench) -> None:
        for i in range(2 * PART_EVENTS):
            bench.flight.record(bench.clock.time, LastToken(i, 0))
        await bench.ask()
        parts = [word for word in bench.said if isinstance(word, TimelinePart)]
        assert [(part.process, part.delay_s, len(part.events)) for part in parts] == [
            ("coordinator", 0.0, PART_EVENTS),
            ("coordinator", 0.0, PART_EVENTS),
        ]
        assert bench.said[-1] == TimelineEnd()

    play(body)


def test_a_worker_without_events_is_told_of() -> None:
    async def body(bench: Bench) -> None:
        await bench.ask("p0")
        await bench.answer("p0", 0, 0)
        assert [(part.process, part.events) for part in bench.of_workers] == [("p0", ())]
        assert bench.said[-1] == TimelineEnd()

    play(body)


def test_silent_workers_are_left_out_and_named() -> None:
    async def body(bench: Bench) -> None:
        await bench.ask("p0", "d0", "d1")
        await bench.answer("d0", 0, 2)
        await bench.answer("d1", 0, 1)
        bench.timelines.tick(bench.clock.time + ANSWER_S)
        assert bench.asked[-1] == ("d0", 1)  # not yet
        await bench.waited()  # d0 has said part 0 and is silent since
        assert bench.asked[-1] == ("d1", 1)
        await bench.answer("d0", 1, 2)  # too late
        await bench.answer("d1", 1, 1)
        await bench.waited()  # p0 never said anything
        assert [part.process for part in bench.of_workers] == ["d1"]
        assert bench.said[-1] == TimelineEnd(missing=("d0", "p0"))

    play(body)


def test_a_second_client_is_told_to_wait_and_does_not_disturb_the_first() -> None:
    async def body(bench: Bench) -> None:
        await bench.ask("p0")
        bench.timelines.ask(10.0, lambda: pytest.fail("nobody needs to know the workers"), bench._say)
        refused = bench.said[-1]
        assert isinstance(refused, TimelineEnd)
        assert refused.error is not None
        await bench.answer("p0", 0, 1)
        await bench.answer("p0", 1, 1)
        assert bench.said[-1] == TimelineEnd()
        await bench.ask()
        assert bench.said[-1] == TimelineEnd()

    play(body)


def test_nobody_is_asked_for_a_client_that_does_not_read() -> None:
    async def body(bench: Bench) -> None:
        bench.reads = Sent.UNREACHABLE
        await bench.ask("p0")
        await bench.answer("p0", 0, 3)
        assert bench.asked == [("p0", 0)]
        bench.reads = Sent.OK
        await bench.ask()
        assert bench.said[-1] == TimelineEnd()

    play(body)


def test_answers_to_another_question_are_dropped() -> None:
    async def body(bench: Bench) -> None:
        await bench.ask("p0")
        await bench.answer("p0", 0, 1, timeline_id=7)
        await bench.answer("p9", 0, 1)
        assert bench.asked == [("p0", 0)]

    play(body)


def test_one_own_part_in_a_turn_of_the_loop_however_many_workers_answer() -> None:
    async def body(bench: Bench) -> None:
        workers = ("p0", "p1", "d0", "d1")
        for i in range(8 * PART_EVENTS):
            bench.flight.record(bench.clock.time, LastToken(i, 0))
        bench.timelines.ask(10.0, lambda: [status(worker_id) for worker_id in workers], bench._say)
        for worker_id in workers:
            bench.timelines.told(worker_id, RecordingPart(timeline_id=1, part=0, parts=1))
        said = [len(bench.said)]
        for _ in range(12):
            await asyncio.sleep(0)
            said.append(len(bench.said))
        assert max(after - before for before, after in itertools.pairwise(said)) == 1
        assert (said[0], said[-1]) == (0, 8)
        assert bench.asked[4:] == [("p0", 1)]

    play(body)


def test_a_loop_that_was_held_takes_in_what_has_come_before_it_blames_anybody() -> None:
    async def body(bench: Bench) -> None:
        await bench.ask("p0", "d0")
        bench.clock.time += 10 * ANSWER_S
        bench.timelines.tick(bench.clock.time)
        await bench.answer("p0", 0, 1)
        await bench.answer("d0", 0, 1)
        bench.timelines.tick(bench.clock.time)
        await bench.answer("p0", 1, 1)
        await bench.answer("d0", 1, 1)
        assert bench.said[-1] == TimelineEnd()

    play(body)


def test_nobody_is_late_while_the_coordinator_tells_its_own() -> None:
    async def body(bench: Bench) -> None:
        bench.timelines.ask(10.0, lambda: [status("p0")], bench._say)
        bench.clock.time += 10 * ANSWER_S
        for _ in range(3):
            bench.timelines.tick(bench.clock.time)
        await bench.turns()
        await bench.answer("p0", 0, 0)
        assert bench.said[-1] == TimelineEnd()

    play(body)


def test_a_lost_worker_is_left_out_at_once() -> None:
    async def body(bench: Bench) -> None:
        await bench.ask("p0", "d0", "d1")
        await bench.answer("d0", 0, 2)
        assert bench.asked[-1] == ("d0", 1)
        for worker_id in ("d0", "p0", "d9"):
            bench.timelines.lost(worker_id)
        await bench.answer("d1", 0, 1)
        await bench.answer("d1", 1, 1)
        assert bench.said[-1] == TimelineEnd(missing=("d0", "p0"))

    play(body)


def test_a_worker_that_tells_of_another_recording_is_left_out() -> None:
    async def body(bench: Bench) -> None:
        await bench.ask("p0")
        await bench.answer("p0", 0, 2)
        await bench.answer("p0", 1, 0)
        assert bench.of_workers == []
        assert bench.said[-1] == TimelineEnd(missing=("p0",))

    play(body)
