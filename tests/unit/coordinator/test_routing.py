"""Does the next request go to the pair that will serve it first?"""

from coordinator import routing
from coordinator.routing import Route
from coordinator.state import CellState, WorkerRecord
from tests.support.cells import LIMITS, request, worker
from transport.messages.worker import SelfTestDone


def cell_of(*workers: WorkerRecord, linked: bool = True) -> CellState:
    cell = CellState(workers={record.worker_id: record for record in workers})
    for prefill in cell.of_role("prefill"):
        if linked:
            for decode in cell.of_role("decode"):
                prefill.links[decode.worker_id] = SelfTestDone(transfer_id=1, quarantined_pages=0)
    return cell


def prefill(name: str, backlog: int = 0, rate: float = 0.0, pages: int = 64) -> WorkerRecord:
    record = worker(name, "prefill", pages)
    record.backlog_tokens, record.tokens_per_s = backlog, rate
    return record


def decode(name: str, free: int = 64, pages: int = 64) -> WorkerRecord:
    record = worker(name, "decode", pages)
    record.free_pages = free
    return record


def choose(cell: CellState, prompt: int = 8, max_tokens: int = 4) -> Route | None:
    return routing.choose(cell, request(1, prompt, max_tokens), LIMITS)


def test_ties_go_to_the_lower_name() -> None:
    cell = cell_of(prefill("p1"), prefill("p0"), decode("d1"), decode("d0"))
    assert choose(cell) == Route("p0", "d0", 3)


def test_prefill_goes_to_the_shortest_predicted_wait_not_to_the_shortest_queue() -> None:
    slow, fast = prefill("p0", backlog=100, rate=10.0), prefill("p1", backlog=200, rate=100.0)
    assert choose(cell_of(slow, fast, decode("d0"))) == Route("p1", "d0", 3)


def test_an_unmeasured_prefill_worker_counts_as_an_average_one() -> None:
    measured = prefill("p0", backlog=100, rate=100.0)  # one second
    for backlog, chosen in ((99, "p1"), (101, "p0")):
        route = choose(cell_of(measured, prefill("p1", backlog=backlog), decode("d0")))
        assert route is not None
        assert route.prefill == chosen


def test_a_prefill_worker_without_room_is_passed_over() -> None:
    full = prefill("p0", backlog=LIMITS.prefill_backlog_tokens, rate=1e9)
    small = prefill("p1", pages=1)
    assert choose(cell_of(full, small, prefill("p2", backlog=9), decode("d0"))) == Route("p2", "d0", 3)
    assert choose(cell_of(full, small, decode("d0"))) is None


def test_decode_goes_to_the_largest_free_share_not_to_the_most_pages() -> None:
    large, small = decode("d0", free=50, pages=100), decode("d1", free=9, pages=10)
    assert choose(cell_of(prefill("p0"), large, small)) == Route("p0", "d1", 3)


def test_a_decode_worker_without_room_is_passed_over() -> None:
    full = decode("d0")
    full.requests = set(range(100, 108))
    assert choose(cell_of(prefill("p0"), full, decode("d1", free=3))) == Route("p0", "d1", 3)
    assert choose(cell_of(prefill("p0"), full, decode("d1", free=2))) is None


def test_only_tested_links_are_used() -> None:
    cell = cell_of(prefill("p0"), prefill("p1", backlog=50), decode("d0"), decode("d1"), linked=False)
    assert choose(cell) is None
    cell.workers["p1"].links["d1"] = SelfTestDone(transfer_id=1, quarantined_pages=0)
    assert choose(cell) == Route("p1", "d1", 3)


def test_the_next_best_prefill_worker_is_tried_when_the_best_has_no_linked_room() -> None:
    cell = cell_of(prefill("p0"), prefill("p1", backlog=50), decode("d0", free=2), decode("d1"), linked=False)
    cell.workers["p0"].links["d0"] = cell.workers["p1"].links["d1"] = SelfTestDone(transfer_id=1, quarantined_pages=0)
    assert choose(cell) == Route("p1", "d1", 3)


def test_one_token_needs_neither_link_nor_decode_worker() -> None:
    assert choose(cell_of(prefill("p0"), linked=False), max_tokens=1) == Route("p0", None, 0)


def test_pages_are_counted_in_the_size_of_the_decode_worker() -> None:
    assert choose(cell_of(prefill("p0"), decode("d0")), prompt=9, max_tokens=9) == Route("p0", "d0", 5)


def test_an_empty_cell_has_no_route() -> None:
    assert choose(cell_of()) is None
    assert choose(cell_of(prefill("p0"))) is None
    assert choose(cell_of(decode("d0"))) is None
