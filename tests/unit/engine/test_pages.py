"""Does the allocator keep the two-owner rule, whatever happens in whatever order?"""

from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.pages import PageAllocator, PoolExhausted, Run, runs


def test_a_page_is_free_only_when_request_and_transfer_let_go() -> None:
    allocator = PageAllocator(4)
    allocator.reserve(1, 3)
    allocator.hold(1)
    assert allocator.release(1) is False
    assert allocator.free_pages == 1
    assert allocator.settle(1) is True
    assert allocator.free_pages == 4


def test_the_transfer_may_let_go_first() -> None:
    allocator = PageAllocator(4)
    allocator.reserve(1, 3)
    allocator.hold(1)
    assert allocator.settle(1) is False
    assert allocator.pages(1) == (0, 1, 2)
    assert allocator.release(1) is True


def test_quarantined_pages_never_come_back() -> None:
    allocator = PageAllocator(4)
    lost = allocator.reserve(1, 3)
    allocator.hold(1)
    assert allocator.quarantine(1) == 3
    assert (allocator.free_pages, allocator.reserved_pages, allocator.quarantined_pages) == (1, 0, 3)
    assert not set(allocator.reserve(2, 1)) & set(lost)
    with pytest.raises(PoolExhausted):
        allocator.reserve(3, 1)


def test_one_run_is_best_fit() -> None:
    allocator = PageAllocator(10)
    for owner, count in ((1, 3), (2, 1), (3, 2), (4, 1)):
        allocator.reserve(owner, count)
    allocator.release(1)
    allocator.release(3)  # free: 0-2, 4-5, 7-9
    assert allocator.reserve(5, 2) == (4, 5)
    assert allocator.reserve(6, 3) == (0, 1, 2)


def test_without_one_run_the_longest_come_first() -> None:
    allocator = PageAllocator(10)
    for owner, count in ((1, 2), (2, 1), (3, 4), (4, 1), (5, 2)):
        allocator.reserve(owner, count)
    for owner in (1, 3, 5):
        allocator.release(owner)  # free: 0-1, 3-6, 8-9
    assert allocator.reserve(6, 6) == (3, 4, 5, 6, 0, 1)


def test_a_refused_reservation_takes_nothing() -> None:
    allocator = PageAllocator(4)
    allocator.reserve(1, 2)
    with pytest.raises(PoolExhausted, match="3 pages wanted, 2 of 4 free"):
        allocator.reserve(2, 3)
    assert allocator.free_pages == 2
    allocator.check()


@pytest.mark.parametrize("call", ["hold", "settle", "release", "quarantine", "pages"])
def test_an_owner_without_pages_is_a_mistake(call: str) -> None:
    with pytest.raises(ValueError, match="holds no pages"):
        getattr(PageAllocator(4), call)(7)


def test_letting_go_twice_is_a_mistake() -> None:
    allocator = PageAllocator(4)
    allocator.reserve(1, 1)
    allocator.hold(1)
    allocator.release(1)
    with pytest.raises(ValueError, match="already let go"):
        allocator.release(1)
    with pytest.raises(ValueError, match="no transfer"):
        allocator.hold(1)


def test_check_sees_a_page_in_two_places_and_in_none() -> None:
    allocator = PageAllocator(4)
    allocator._free.append(Run(3, 1))
    with pytest.raises(AssertionError, match=r"\[3\]"):
        allocator.check()
    allocator._free[:] = [Run(0, 2)]
    with pytest.raises(AssertionError, match=r"\[2, 3\]"):
        allocator.check()


def test_runs_are_cut_where_memory_is() -> None:
    assert list(runs([4, 5, 6, 2, 3, 9])) == [Run(4, 3), Run(2, 2), Run(9, 1)]
    assert list(runs([3, 2])) == [Run(3, 1), Run(2, 1)]
    assert list(runs([])) == []


class AllocatorMachine(RuleBasedStateMachine):
    """Random calls against a model that knows only sets of pages."""

    @initialize(total=st.integers(1, 40))
    def start(self, total: int) -> None:
        self.total = total
        self.allocator = PageAllocator(total)
        self.free = set(range(total))
        self.lent: dict[int, set[int]] = {}
        self.held_by: dict[int, set[str]] = {}
        self.lost: set[int] = set()
        self.next_owner = 0

    @rule(count=st.integers(1, 12))
    def reserve(self, count: int) -> None:
        owner, self.next_owner = self.next_owner, self.next_owner + 1
        if count > len(self.free):
            with pytest.raises(PoolExhausted):
                self.allocator.reserve(owner, count)
            return
        pages = self.allocator.reserve(owner, count)
        assert len(pages) == count
        assert set(pages) <= self.free
        longest = longest_runs(self.free)
        fewest = next(n for n in range(1, len(longest) + 1) if sum(longest[:n]) >= count)
        assert len(list(runs(pages))) == fewest
        self.free -= set(pages)
        self.lent[owner] = set(pages)
        self.held_by[owner] = {"request"}

    @precondition(lambda self: self.lent)
    @rule(data=st.data(), who=st.sampled_from(["request", "transfer"]))
    def let_go(self, data: st.DataObject, who: str) -> None:
        owner = data.draw(st.sampled_from(sorted(self.lent)))
        call = self.allocator.release if who == "request" else self.allocator.settle
        if who not in self.held_by[owner]:
            with pytest.raises(ValueError, match="owner"):
                call(owner)
            return
        self.held_by[owner].remove(who)
        freed = call(owner)
        assert freed is (not self.held_by[owner])
        if freed:
            self.free |= self.lent.pop(owner)

    @precondition(lambda self: self.lent)
    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        owner = data.draw(st.sampled_from(sorted(self.lent)))
        if self.held_by[owner] == {"request"}:
            self.allocator.hold(owner)
            self.held_by[owner].add("transfer")
        else:
            with pytest.raises(ValueError, match="no transfer"):
                self.allocator.hold(owner)

    @precondition(lambda self: self.lent)
    @rule(data=st.data())
    def quarantine(self, data: st.DataObject) -> None:
        owner = data.draw(st.sampled_from(sorted(self.lent)))
        self.allocator.quarantine(owner)
        self.lost |= self.lent.pop(owner)

    @invariant()
    def every_page_is_in_one_place(self) -> None:
        self.allocator.check()
        assert self.allocator.free_pages == len(self.free)
        assert sorted((run.length for run in self.allocator._free), reverse=True) == longest_runs(self.free)
        assert self.allocator.reserved_pages == sum(map(len, self.lent.values()))
        assert self.allocator.quarantined_pages == len(self.lost)
        assert all(set(self.allocator.pages(owner)) == pages for owner, pages in self.lent.items())


def longest_runs(pages: set[int]) -> list[int]:
    """Lengths of the maximal contiguous runs, longest first."""
    ordered = sorted(pages)
    borders = [0, *(i for i, (a, b) in enumerate(pairwise(ordered), 1) if b != a + 1), len(ordered)]
    return sorted((b - a for a, b in pairwise(borders) if b > a), reverse=True)


TestAllocator = AllocatorMachine.TestCase
TestAllocator.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
