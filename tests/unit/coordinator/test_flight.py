"""Does the coordinator's recorder know how long a request was in each phase, whatever became of it?"""

from coordinator.events import Action, CancelAsked, DrainAsked, Event, Ticked, WorkerLost
from coordinator.flight import CellFlight
from runtime.flight import Gauge, InPhase
from runtime.params import FinishReason
from tests.support.cells import Cell


class RecordedCell(Cell):
    """A cell that is watched as the service watches its own."""

    def __init__(self, pages: int = 64) -> None:
        self.flight: CellFlight | None = None
        super().__init__(pages=pages)
        self.flight = CellFlight(self.state)

    def feed(self, event: Event) -> list[Action]:
        actions = super().feed(event)
        if self.flight is not None:
            self.flight.saw(event, actions, self.now)
        return actions

    def after(self, seconds: float) -> None:
        self.now += seconds

    def phases(self, request_id: int) -> list[tuple[str, float]]:
        """What a recording says of a request; a phase that goes on has a +."""
        assert self.flight is not None
        events = self.flight.since(1e6, self.now).events
        found = [event for event in events if isinstance(event, InPhase) and event.request_id == request_id]
        return [(event.phase + "+" * event.still, event.duration_s) for event in found]

    def gauges(self) -> dict[str, int]:
        assert self.flight is not None
        return {e.name: e.value for e in self.flight.since(0.0, self.now).events if isinstance(e, Gauge)}


def test_a_request_from_submit_to_its_last_word() -> None:
    cell = RecordedCell()
    request_id = cell.start(max_tokens=3)
    cell.after(1.0)
    cell.first_token(request_id)
    cell.after(0.5)
    cell.prefill_lets_go(request_id)
    cell.token(request_id, 1)
    cell.after(0.25)
    assert cell.phases(request_id)[-1] == ("decoding+", 0.25)
    cell.token(request_id, 2, FinishReason.LENGTH)
    cell.after(0.125)
    cell.decode_lets_go(request_id)
    assert cell.phases(request_id) == [
        ("queued", 0.0),
        ("prefilling", 1.0),
        ("handing_off", 0.5),
        ("decoding", 0.25),
        ("finishing", 0.125),
    ]


def test_a_queued_request_is_there_while_it_waits() -> None:
    cell = RecordedCell(pages=4)
    first = cell.start(prompt_tokens=8, max_tokens=8)
    second, _ = cell.submit(prompt_tokens=8, max_tokens=8)
    cell.after(2.0)
    assert cell.phases(second) == [("queued+", 2.0)]
    assert cell.gauges() == {"queued": 1, "open requests": 2, "unspent pages of d0": 0}
    cell.feed(CancelAsked(first))
    assert cell.phases(first)[-1] == ("prefilling", 2.0)
    cell.feed(CancelAsked(second))
    assert cell.phases(second) == [("queued", 2.0)]
    assert cell.gauges()["open requests"] == 0


def test_a_refused_request_is_not_open() -> None:
    cell = RecordedCell()
    cell.feed(DrainAsked())
    request_id, _ = cell.submit()
    assert cell.phases(request_id) == [("queued", 0.0)]


def test_a_request_that_ran_out_of_time_has_ended() -> None:
    cell = RecordedCell()
    request_id = cell.start(timeout_s=5.0)
    cell.after(6.0)
    cell.feed(Ticked())
    assert cell.phases(request_id) == [("queued", 0.0), ("prefilling", 6.0)]


def test_the_gauge_of_a_lost_worker_falls_to_nothing_and_comes_back_with_it() -> None:
    cell = RecordedCell()
    cell.feed(DrainAsked())
    name = "unspent pages of d0"
    assert cell.gauges()[name] == 64
    cell.feed(WorkerLost("d0", "gone"))
    cell.after(1.0)
    assert name not in cell.gauges()
    assert cell.flight is not None
    assert Gauge(name, 0, 64) in cell.flight.since(1e6, cell.now).events
    cell.join("d0", epoch=2)
    assert cell.gauges()[name] == cell.worker("d0").free_pages > 0
