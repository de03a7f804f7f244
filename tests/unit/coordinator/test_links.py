"""When may a prefill worker hand off to a decode worker, and what does finding out cost?"""

import pytest
from msgspec.structs import replace

from coordinator.events import Action, SelfTested, Tell, Ticked, WorkerLost
from coordinator.links import SELF_TEST_BYTES, is_slow, is_staged
from coordinator.state import Phase
from runtime.buffers import MemoryKind
from tests.support.cells import Cell, peer, told
from transport.messages.worker import SelfTest, SelfTestDone


def started(actions: list[Action]) -> dict[str, Action]:
    """The self-tests among `actions`, by worker."""
    return {action.worker_id: action for action in actions if isinstance(action, Tell) and is_test(action)}


def is_test(action: Tell) -> bool:
    return isinstance(action.message, SelfTest)


def joined() -> tuple[Cell, dict[str, Action]]:
    cell = Cell(prefill=0, decode=0)
    assert cell.join("d0") == []
    return cell, started(cell.join("p0"))


def test_both_sides_are_told_of_one_transfer_of_the_same_size() -> None:
    cell = Cell(prefill=0, decode=0, pages=64)
    cell.join("d0")
    (decode, to_decode), (prefill, to_prefill) = told(cell.join("p0"))
    assert (decode, prefill) == ("d0", "p0")
    assert to_decode == SelfTest(transfer_id=1, peer=peer("p0"), pages=16)
    assert to_prefill == SelfTest(transfer_id=1, peer=peer("d0"), pages=16)
    assert cell.worker("d0").free_pages == 64 - 16


def test_a_test_is_never_larger_than_needed_nor_than_half_of_the_smaller_pool() -> None:
    for decode_pages, pages in ((1, 1), (3, 1), (20, 10), (400, SELF_TEST_BYTES >> 20)):
        cell = Cell(prefill=0, decode=0)
        cell.join("d0", pages=decode_pages)
        _, (_, message) = told(cell.join("p0", pages=1000))
        assert isinstance(message, SelfTest)
        assert message.pages == pages


def test_the_second_round_makes_the_link_and_is_what_it_reports() -> None:
    cell, tests = joined()
    assert cell.self_tested(tests["p0"]) == []
    again = started(cell.self_tested(tests["d0"]))
    assert set(again) == {"p0", "d0"}
    assert cell.worker("p0").links == {}
    cell.self_tested(again["d0"])
    second = cell.state.link_tests.copy()
    cell.self_tested(again["p0"])
    assert [report.transfer_id for report in cell.worker("p0").links.values()] == list(second)
    assert cell.state.link_tests == {}
    assert cell.worker("d0").free_pages == 64


def test_no_request_goes_over_an_untested_pair() -> None:
    cell, tests = joined()
    request_id, actions = cell.submit()
    assert actions == []
    for _ in range(2):
        cell.self_tested(tests["p0"])
        tests = started(cell.self_tested(tests["d0"]))
    assert cell.record(request_id).phase is Phase.PREFILLING


def test_every_pair_is_tested_once() -> None:
    cell = Cell(prefill=2, decode=3)
    for prefill in ("p0", "p1"):
        assert set(cell.worker(prefill).links) == {"d0", "d1", "d2"}
    assert cell.feed(Ticked()) == []


def test_a_test_waits_for_pages_instead_of_taking_those_of_requests() -> None:
    cell = Cell(pages=8)
    running = cell.start(prompt_tokens=16, max_tokens=17)  # all pages
    assert cell.join("p1") == []
    cell.prefill_lets_go(running, error="stuck")
    assert set(started(cell.decode_lets_go(running))) == {"p1", "d0"}


def test_the_second_round_waits_for_pages_that_a_request_has_taken_since_the_first() -> None:
    cell = Cell(prefill=1, decode=1, pages=20)
    second = started(cell.join("p1"))
    running = cell.start(prompt_tokens=32, max_tokens=9)  # 10 pages, and 10 are in the test
    queued, _ = cell.submit(prompt_tokens=4, max_tokens=2)
    cell.self_tested(second["d0"])
    assert cell.record(queued).phase is Phase.PREFILLING, "it took pages that the first round gave back"
    assert cell.self_tested(second["p1"]) == [], "the second round needs 10 pages, and 8 are free"
    cell.prefill_lets_go(running, error="stuck")
    assert set(started(cell.decode_lets_go(running))) == {"p1", "d0"}


def test_a_failed_test_is_tried_again_after_the_next_tick_whichever_side_failed() -> None:
    for side in ("p0", "d0"):
        cell, tests = joined()
        other = "d0" if side == "p0" else "p0"
        assert cell.self_tested(tests[side], error="no route") == []
        assert cell.self_tested(tests[other]) == []
        assert cell.worker("d0").free_pages == 64
        assert cell.submit()[1] == []
        assert set(started(cell.feed(Ticked()))) == {"p0", "d0"}


def test_quarantined_pages_of_a_test_do_not_come_back() -> None:
    cell, tests = joined()
    transfer_id = next(iter(cell.state.link_tests))
    cell.self_tested(tests["p0"], error="gone")
    cell.feed(SelfTested("d0", SelfTestDone(transfer_id=transfer_id, quarantined_pages=16, error="the peer is gone")))
    assert (cell.worker("d0").free_pages, cell.worker("d0").quarantined_pages) == (48, 16)


def test_unknown_doubled_and_late_reports_change_nothing() -> None:
    cell, tests = joined()
    for worker_id, transfer_id in (("p0", 99), ("nobody", 1)):
        assert cell.feed(SelfTested(worker_id, SelfTestDone(transfer_id=transfer_id, quarantined_pages=0))) == []
    cell.self_tested(tests["d0"])
    assert cell.self_tested(tests["d0"]) == []
    assert cell.worker("d0").free_pages == 64


# --- losses ----------------------------------------------------------------------------------------------------------


def test_the_links_of_a_lost_worker_go_with_it() -> None:
    cell = Cell(prefill=2, decode=2)
    cell.feed(WorkerLost("d0", "killed"))
    assert set(cell.worker("p0").links) == set(cell.worker("p1").links) == {"d1"}
    tests = started(cell.join("d0", epoch=2))
    assert set(tests) == {"d0", "p0"}  # one pair at a time, so that no test measures another
    for prefill in ("p0", "p0", "p1", "p1"):
        cell.self_tested(tests[prefill])
        tests = started(cell.self_tested(tests["d0"]))
    assert tests == {}
    assert set(cell.worker("p0").links) == set(cell.worker("p1").links) == {"d0", "d1"}


def test_a_link_is_slow_only_if_enough_was_moved_to_tell() -> None:
    link = SelfTestDone(
        transfer_id=1, quarantined_pages=0, nbytes=16 << 20, gigabytes_per_s=0.2, memcpy_gigabytes_per_s=15.0
    )
    assert is_slow(link)
    assert not is_slow(replace(link, nbytes=1 << 20))
    assert not is_slow(replace(link, gigabytes_per_s=1.0))


def test_what_the_ports_say_to_each_other_makes_no_gpu_slow() -> None:
    """16 MiB in 1.5 ms is little of what a GPU copies, and nearly all of it is words."""
    link = SelfTestDone(
        transfer_id=1, quarantined_pages=0, nbytes=16 << 20, gigabytes_per_s=11.0, memcpy_gigabytes_per_s=2000.0
    )
    assert not is_slow(link)
    assert is_slow(replace(link, gigabytes_per_s=2.0))


@pytest.mark.parametrize(
    ("memory", "transport", "staged"),
    [
        (MemoryKind.CUDA, "tcp", True),
        (MemoryKind.CUDA, "cuda_copy+tcp", True),
        (MemoryKind.CUDA, "cuda_ipc", False),
        (MemoryKind.CUDA, "rc_mlx5+rc_mlx5", False),
        (MemoryKind.CUDA, "rc_mlx5+tcp", True),
        (MemoryKind.CUDA, "unknown", False),
        (MemoryKind.HOST, "tcp", False),
    ],
)
def test_pages_of_a_gpu_that_go_through_the_host_are_noticed(memory: MemoryKind, transport: str, staged: bool) -> None:
    link = SelfTestDone(transfer_id=1, quarantined_pages=0, memory=memory, transport=transport)
    assert is_staged(link) is staged


def relinked(cell: Cell, tests: dict[str, Action]) -> bool:
    for _ in range(2):
        cell.self_tested(tests["p0"])
        tests = started(cell.self_tested(tests["d0"]))
    return set(cell.worker("p0").links) == {"d0"}


def test_a_prefill_worker_lost_after_decode_has_reported_can_be_linked_again() -> None:
    cell, tests = joined()
    cell.self_tested(tests["d0"])
    cell.feed(WorkerLost("p0", "killed"))
    assert cell.state.link_tests == {}
    assert relinked(cell, started(cell.join("p0", epoch=2)))


def test_a_prefill_worker_lost_after_it_has_reported_is_not_linked_by_that_report() -> None:
    cell, tests = joined()
    cell.self_tested(tests["p0"])
    cell.feed(WorkerLost("p0", "killed"))
    cell.join("p0", epoch=2)
    assert cell.self_tested(tests["d0"], error="the peer is gone") == []
    assert cell.worker("p0").links == {}
    assert relinked(cell, started(cell.feed(Ticked())))


def test_a_report_on_a_worker_that_is_gone_gives_the_pages_back() -> None:
    cell, tests = joined()
    cell.self_tested(tests["p0"])
    cell.feed(WorkerLost("p0", "killed"))
    assert cell.worker("d0").free_pages == 48
    assert cell.self_tested(tests["d0"]) == []
    assert cell.worker("d0").free_pages == 64


def test_a_lost_decode_worker_is_tested_again_when_the_old_test_is_over() -> None:
    cell, tests = joined()
    cell.feed(WorkerLost("d0", "killed"))
    assert started(cell.join("d0", epoch=2)) == {}, "the prefill worker still holds pages of the old test"
    assert cell.self_tested(tests["p0"], error="the peer is gone") == []
    assert relinked(cell, started(cell.feed(Ticked())))


def test_losing_both_sides_leaves_no_test_behind() -> None:
    cell, _ = joined()
    cell.feed(WorkerLost("d0", "killed"))
    cell.feed(WorkerLost("p0", "killed"))
    assert cell.state.link_tests == {}
    cell.join("d0", epoch=2)
    assert relinked(cell, started(cell.join("p0", epoch=2)))
