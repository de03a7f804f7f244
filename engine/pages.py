"""Which pages of the KV pool are free, and who holds the others?

A page has two owners: the request that computes with it and the transfer that moves it. It is free only when both have
let go (ADR-0004). Pages of a transfer that cannot be proved settled are quarantined: counted, never reused. One
allocator per worker, used on its loop thread; it never touches the memory itself. Property-tested against a brute-force
model in `tests/unit/engine/test_pages.py`.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class PoolExhausted(Exception):
    """Fewer pages are free than were asked for; nothing was reserved."""


class Run(NamedTuple):
    """Pages `start` .. `start + length`, contiguous in memory."""

    start: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length


def runs(pages: Sequence[int]) -> Iterator[Run]:
    """Cut `pages` where the next page is not the next one in memory."""
    start = 0
    for i in range(1, len(pages) + 1):
        if i == len(pages) or pages[i] != pages[i - 1] + 1:
            yield Run(pages[start], i - start)
            start = i


@dataclass(slots=True)
class _Holding:
    pages: tuple[int, ...]
    request: bool = True
    transfer: bool = False


class PageAllocator:
    """Pages 0 .. `total_pages`, lent to owners; an owner is any number unique among those that hold pages."""

    def __init__(self, total_pages: int) -> None:
        if total_pages <= 0:
            raise ValueError(f"a pool needs at least one page, not {total_pages}")
        self._total_pages = total_pages
        self._free = [Run(0, total_pages)]  # ascending and maximal: no two of them touch
        self._holdings: dict[int, _Holding] = {}
        self._quarantined: list[int] = []

    @property
    def total_pages(self) -> int:
        return self._total_pages

    @property
    def free_pages(self) -> int:
        return sum(run.length for run in self._free)

    @property
    def reserved_pages(self) -> int:
        """Pages that a request, a transfer or both hold."""
        return sum(len(holding.pages) for holding in self._holdings.values())

    @property
    def quarantined_pages(self) -> int:
        return len(self._quarantined)

    def pages(self, owner: int) -> tuple[int, ...]:
        return self._holding(owner).pages

    def reserve(self, owner: int, count: int) -> tuple[int, ...]:
        """Give `owner`'s request `count` pages, in as few contiguous runs as the free pages allow.

        Few runs are few transfers. One run is best-fit, so that long runs stay long.

        Raises:
            PoolExhausted: fewer than `count` pages are free.
            ValueError: `owner` already holds pages, or `count` is not positive.
        """
        if count <= 0 or owner in self._holdings:
            raise ValueError(f"owner {owner} cannot reserve {count} pages")
        free = self.free_pages
        if count > free:
            raise PoolExhausted(f"{count} pages wanted, {free} of {self._total_pages} free")
        pages = tuple(self._take(count))
        self._holdings[owner] = _Holding(pages)
        return pages

    def hold(self, owner: int) -> None:
        """A transfer starts to use `owner`'s pages; only while the request still holds them."""
        holding = self._holding(owner)
        if holding.transfer or not holding.request:
            raise ValueError(f"no transfer of owner {owner} may start now")
        holding.transfer = True

    def settle(self, owner: int) -> bool:
        """The transfer has let go; True when the pages are free with that."""
        holding = self._holding(owner)
        if not holding.transfer:
            raise ValueError(f"owner {owner} has no transfer")
        holding.transfer = False
        return self._free_if_unheld(owner)

    def release(self, owner: int) -> bool:
        """The request has let go; True when the pages are free with that."""
        holding = self._holding(owner)
        if not holding.request:
            raise ValueError(f"owner {owner}'s request has already let go")
        holding.request = False
        return self._free_if_unheld(owner)

    def quarantine(self, owner: int) -> int:
        """Both let go, but the pages are never lent again: somebody may still write to them. Returns their number."""
        pages = self._holding(owner).pages
        del self._holdings[owner]
        self._quarantined.extend(pages)
        return len(pages)

    def check(self) -> None:
        """
        Raises:
            AssertionError: a page is in two places or in none.
        """
        places = bytearray(self._total_pages)
        for page in self._every_page():
            places[page] += 1
        wrong = [page for page, count in enumerate(places) if count != 1]
        if wrong:
            raise AssertionError(f"pages in no place or in several: {wrong[:8]}")

    def _every_page(self) -> Iterator[int]:
        for run in self._free:
            yield from range(run.start, run.end)
        for holding in self._holdings.values():
            yield from holding.pages
        yield from self._quarantined

    def _holding(self, owner: int) -> _Holding:
        holding = self._holdings.get(owner)
        if holding is None:
            raise ValueError(f"owner {owner} holds no pages")
        return holding

    def _free_if_unheld(self, owner: int) -> bool:
        holding = self._holdings[owner]
        if holding.request or holding.transfer:
            return False
        del self._holdings[owner]
        for run in runs(holding.pages):
            self._give_back(run)
        return True

    def _take(self, count: int) -> Iterator[int]:
        while count > 0:
            fitting = [run for run in self._free if run.length >= count]
            run = min(fitting, key=_length) if fitting else max(self._free, key=_length)
            taken = min(count, run.length)
            position = bisect_left(self._free, run)
            if taken == run.length:
                del self._free[position]
            else:
                self._free[position] = Run(run.start + taken, run.length - taken)
            yield from range(run.start, run.start + taken)
            count -= taken

    def _give_back(self, run: Run) -> None:
        """Insert a run and merge it with the free runs that it touches."""
        position = bisect_left(self._free, run)
        if position < len(self._free) and self._free[position].start == run.end:
            run = Run(run.start, run.length + self._free.pop(position).length)
        if position > 0 and self._free[position - 1].end == run.start:
            position -= 1
            before = self._free.pop(position)
            run = Run(before.start, before.length + run.length)
        self._free.insert(position, run)


def _length(run: Run) -> int:
    return run.length
