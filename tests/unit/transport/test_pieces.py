"""Are both sides' pieces the same, and inside their memory?"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.buffers import Region
from transport.pieces import Piece, place, refine

RUNS = st.lists(st.integers(1, 50), min_size=1, max_size=12)


def bytes_of(regions: list[Region]) -> list[int]:
    """Every address, in order."""
    return [address for region in regions for address in range(region.address, region.address + region.nbytes)]


def same_sum(ours: list[int], theirs: list[int]) -> tuple[list[int], list[int]]:
    difference = sum(ours) - sum(theirs)
    return (ours, [*theirs, difference]) if difference > 0 else ([*ours, -difference] if difference else ours, theirs)


@given(ours=RUNS, theirs=RUNS, cap=st.integers(1, 100))
def test_pieces_are_the_fewest_that_fit_both_sides(ours: list[int], theirs: list[int], cap: int) -> None:
    ours, theirs = same_sum(ours, theirs)
    pieces = refine(ours, theirs, cap)
    assert pieces == refine(theirs, ours, cap)
    # The slow and obvious way: byte i starts a piece if either side starts a run there, or a multiple of the cap does.
    starts = {sum(runs[:k]) for runs in (ours, theirs) for k in range(len(runs))} | set(range(0, sum(ours), cap))
    assert [piece.offset for piece in pieces] == sorted(starts)
    assert [piece.index for piece in pieces] == list(range(len(pieces)))
    assert [piece.end for piece in pieces] == [*sorted(starts)[1:], sum(ours)]


@given(ours=RUNS, theirs=RUNS, cap=st.integers(1, 100))
def test_the_places_of_the_pieces_are_the_memory_in_order(ours: list[int], theirs: list[int], cap: int) -> None:
    ours, theirs = same_sum(ours, theirs)
    pieces = refine(ours, theirs, cap)
    for runs in (ours, theirs):
        regions = [Region(1000 * (len(runs) - i), nbytes) for i, nbytes in enumerate(runs)]
        places = place(regions, pieces)
        assert [region.nbytes for region in places] == [piece.nbytes for piece in pieces]
        assert bytes_of(list(places)) == bytes_of(regions)


@pytest.mark.parametrize(
    ("ours", "theirs", "cap"), [([1], [2], 8), ([0, 1], [1], 8), ([1], [1, 0], 8), ([1], [1], 0), ([-1, 2], [1], 8)]
)
def test_runs_that_do_not_fit_each_other_are_refused(ours: list[int], theirs: list[int], cap: int) -> None:
    with pytest.raises(ValueError, match=r"positive|bytes"):
        refine(ours, theirs, cap)


def test_a_piece_outside_the_memory_is_refused() -> None:
    region = Region(0, 10)
    with pytest.raises(ValueError, match="leaves"):
        place([region, region], [Piece(0, 5, 10)])
    with pytest.raises(ValueError, match="behind"):
        place([region], [Piece(0, 10, 1)])
