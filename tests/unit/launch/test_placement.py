"""Does every worker get cores of its own, in shares as equal as they can be?"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.placement import Placement, place


@pytest.mark.parametrize(
    ("cores", "prefill", "decode", "placement"),
    [
        (2, 1, 1, Placement(((0,),), ((1,),), shared=False)),
        (3, 1, 1, Placement(((0, 1),), ((2,),), shared=False)),
        (8, 2, 1, Placement(((0, 1, 2), (3, 4, 5)), ((6, 7),), shared=False)),
        (4, 1, 0, Placement(((0, 1, 2, 3),), (), shared=False)),
        (1, 1, 1, Placement(((0,),), ((0,),), shared=True)),
        (2, 2, 2, Placement(((0,), (1,)), ((0,), (1,)), shared=True)),
    ],
)
def test_placements(cores: int, prefill: int, decode: int, placement: Placement) -> None:
    assert place(range(cores), prefill, decode) == placement


@pytest.mark.parametrize(("cores", "prefill", "decode"), [(0, 1, 1), (4, 0, 0)])
def test_there_has_to_be_something_to_place(cores: int, prefill: int, decode: int) -> None:
    with pytest.raises(ValueError, match="nothing to place"):
        place(range(cores), prefill, decode)


@given(st.lists(st.integers(0, 999), min_size=1, max_size=40, unique=True), st.integers(0, 6), st.integers(0, 6))
def test_shares_are_contiguous_disjoint_complete_and_fair(cores: list[int], prefill: int, decode: int) -> None:
    if prefill + decode == 0:
        return
    placement = place(cores, prefill, decode)
    shares = [*placement.prefill, *placement.decode]
    assert (len(placement.prefill), len(placement.decode)) == (prefill, decode)
    assert placement.shared == (prefill + decode > len(cores))
    if placement.shared:
        assert all(len(share) == 1 for share in shares)
        uses = [shares.count((core,)) for core in cores]
        assert sum(uses) == len(shares)
        assert max(uses) - min(uses) <= 1
    else:
        assert [core for share in shares for core in share] == cores
        sizes = [len(share) for share in shares]
        assert max(sizes) - min(sizes) <= 1
        assert sizes == sorted(sizes, reverse=True), "prefill, which comes first, gets what is left over"
