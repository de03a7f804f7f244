"""Into which messages is a transfer cut?

Each side holds its pages in runs of contiguous memory, cut differently. A piece is contiguous on both sides and at most
`cap` bytes: the common refinement of both lists of runs. Both sides compute the same pieces from the same two lists, so
no message has to say which piece it is beyond its number. Few large messages are what makes a transfer fast (ADR-0005).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from runtime.buffers import Region


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes `offset` .. `offset + nbytes` of the transfer, message number `index`."""

    index: int
    offset: int
    nbytes: int

    @property
    def end(self) -> int:
        return self.offset + self.nbytes


def refine(ours: Sequence[int], theirs: Sequence[int], cap: int) -> tuple[Piece, ...]:
    """Cut at every border of a run of either side and at every multiple of `cap` bytes from the start.

    Args:
        ours, theirs: lengths of the runs in bytes, each positive, in the order of the transfer.
        cap: largest piece in bytes.

    Raises:
        ValueError: a length is not positive or the two sums differ.
    """
    if cap <= 0 or any(n <= 0 for n in (*ours, *theirs)):
        raise ValueError("runs and cap must be positive")
    total = sum(ours)
    if total != sum(theirs):
        raise ValueError(f"this side has {total} bytes, the other {sum(theirs)}")
    borders = sorted({*_ends(ours), *_ends(theirs), *range(cap, total, cap)})
    starts = [0, *borders[:-1]]
    return tuple(Piece(i, start, end - start) for i, (start, end) in enumerate(zip(starts, borders, strict=True)))


def _ends(runs: Sequence[int]) -> Iterator[int]:
    end = 0
    for run in runs:
        end += run
        yield end


def place(regions: Sequence[Region], pieces: Sequence[Piece]) -> tuple[Region, ...]:
    """The memory of each piece, given this side's runs; one pass over both.

    Raises:
        ValueError: a piece is not inside one run.
    """
    places: list[Region] = []
    index = start = 0
    for piece in pieces:
        while index < len(regions) and piece.offset >= start + regions[index].nbytes:
            start += regions[index].nbytes
            index += 1
        if index == len(regions):
            raise ValueError(f"piece {piece} lies behind the last run")
        places.append(regions[index].slice(piece.offset - start, piece.nbytes))
    return tuple(places)
