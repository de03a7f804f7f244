"""Does the next request go to the pair that will serve it first?"""

from dataclasses import replace

from coordinator import routing
from coordinator.admission import AdmissionLimits
from coordinator.local_prefill import LocalPrefill
from coordinator.routing import Route
from coordinator.state import CellState, WorkerRecord
from tests.support.cells import AGGREGATED, LIMITS, request, worker
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


def decode(name: str, free: int = 64, pages: int = 64, backlog: int = 0) -> WorkerRecord:
    record = worker(name, "decode", pages)
    record.free_pages, record.backlog_tokens = free, backlog
    return record


def choose(cell: CellState, prompt: int = 8, max_tokens: int = 4, limits: AdmissionLimits = LIMITS) -> Route | None:
    return routing.choose(cell, request(1, prompt, max_tokens), limits)


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


# --- prompts that a decode worker computes itself --------------------------------------------------------------------

SHORT = replace(LIMITS, local=LocalPrefill(prompt_tokens=8, backlog_tokens=20))


def test_an_aggregated_cell_needs_neither_link_nor_prefill_worker() -> None:
    assert choose(cell_of(decode("d1"), decode("d0")), limits=AGGREGATED) == Route(None, "d0", 3)
    assert choose(cell_of(decode("d0")), max_tokens=1, limits=AGGREGATED) == Route(None, "d0", 2)
    assert choose(cell_of(decode("d0", free=2)), limits=AGGREGATED) is None


def test_alone_a_prompt_goes_where_the_fewest_tokens_are_owed_and_then_to_the_emptiest() -> None:
    busy, full, empty = decode("d0", backlog=600), decode("d1", free=9, backlog=100), decode("d2", free=50, backlog=200)
    assert choose(cell_of(busy, full, empty), limits=AGGREGATED) == Route(None, "d2", 3)
    assert choose(cell_of(busy, full), limits=AGGREGATED) == Route(None, "d1", 3)


def test_short_prompts_stay_with_their_decode_worker_if_they_may() -> None:
    cell = cell_of(prefill("p0"), decode("d0"))
    assert choose(cell, prompt=8, limits=SHORT) == Route(None, "d0", 3)
    assert choose(cell, prompt=9, limits=SHORT) == Route("p0", "d0", 3)
    assert choose(cell, prompt=1) == Route("p0", "d0", 1), "unless it is allowed, nothing is computed there"


def test_a_decode_worker_that_owes_enough_takes_no_more_prompts_of_its_own() -> None:
    for backlog, route in ((19, Route(None, "d0", 3)), (20, Route("p0", "d0", 3))):
        assert choose(cell_of(prefill("p0"), decode("d0", backlog=backlog)), limits=SHORT) == route
    second = cell_of(prefill("p0"), decode("d0", backlog=20), decode("d1", free=5))
    assert choose(second, limits=SHORT) == Route(None, "d1", 3)


def test_short_prompts_are_served_while_no_prefill_worker_is_there() -> None:
    assert choose(cell_of(decode("d0")), limits=SHORT) == Route(None, "d0", 3)
    assert choose(cell_of(decode("d0")), prompt=9, limits=SHORT) is None
