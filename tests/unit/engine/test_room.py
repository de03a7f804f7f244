"""Is a pool refused before it is made, and are the flags named that would make room?"""

import pytest

from engine.room import Memory, Need, crowding, too_large

GB = 10**9
H200 = Memory(free=140 * GB, total=150 * GB)


def test_two_workers_fit_beside_two_copies_of_the_weights() -> None:
    assert crowding(Need(weights=16 * GB, pool=50 * GB, others=(60 * GB,)), H200) is None


@pytest.mark.parametrize("others", [(60 * GB, 1 * GB), (75 * GB,)])
def test_what_the_others_will_allocate_counts_before_they_have(others: tuple[int, ...]) -> None:
    why = crowding(Need(weights=16 * GB, pool=50 * GB, others=others), H200)
    assert why is not None
    assert f"{1 + len(others)} workers need" in why
    for part in ("weights of 16.0 GB", "KV pools of 50.0 + ", "--prefill-kv-tokens", "--decode-kv-tokens", "--device"):
        assert part in why


def test_all_of_them_come_to_the_same_conclusion() -> None:
    """So none starts beside one that was refused."""
    pools = (70 * GB, 30 * GB, 5 * GB)
    verdicts = {
        crowding(Need(16 * GB, pool, (*pools[:i], *pools[i + 1 :])), H200) is None for i, pool in enumerate(pools)
    }
    assert verdicts == {False}


def test_a_gpu_that_others_fill_is_no_room_either() -> None:
    filled = Memory(free=49 * GB, total=150 * GB)
    why = crowding(Need(weights=16 * GB, pool=50 * GB), filled)
    assert why is not None
    assert "50.0 GB does not fit into the 49.0 GB that are free of 150.0 GB" in why
    assert why == too_large(50 * GB, filled)
    assert too_large(49 * GB, filled) is None
