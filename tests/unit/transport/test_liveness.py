"""Is a peer given up exactly when it has been silent for too long, and only once?"""

from hypothesis import given
from hypothesis import strategies as st

from transport.liveness import Liveness


def test_a_peer_expires_after_more_than_the_timeout() -> None:
    table: Liveness[str] = Liveness(2.0)
    table.saw("a", 10.0)
    assert table.expired(12.0) == []
    assert "a" in table
    assert table.expired(12.1) == ["a"]


def test_a_peer_is_reported_once_and_forgotten() -> None:
    table: Liveness[str] = Liveness(2.0)
    table.saw("a", 10.0)
    assert table.expired(20.0) == ["a"]
    assert "a" not in table
    assert table.expired(30.0) == []


def test_every_word_counts_as_a_sign_of_life() -> None:
    table: Liveness[str] = Liveness(2.0)
    for now in (10.0, 11.5, 13.0, 14.5):
        table.saw("a", now)
        assert table.expired(now) == []
    assert table.expired(16.6) == ["a"]


def test_a_peer_that_left_is_not_missed_and_may_come_back() -> None:
    table: Liveness[str] = Liveness(2.0)
    table.saw("a", 10.0)
    table.forget("a")
    table.forget("never there")
    assert table.expired(20.0) == []
    table.saw("a", 21.0)
    assert table.expired(22.0) == []
    assert table.expired(24.0) == ["a"]


@given(
    st.lists(
        st.tuples(st.sampled_from(["saw", "forget", "expired"]), st.integers(0, 3), st.integers(0, 4)), max_size=40
    )
)
def test_it_agrees_with_a_list_of_all_that_happened(steps: list[tuple[str, int, int]]) -> None:
    table: Liveness[int] = Liveness(3.0)
    history: list[tuple[str, int, float]] = []
    now = 0.0
    for what, who, passes in steps:
        now += passes
        if what == "saw":
            table.saw(who, now)
            history.append((what, who, now))
        elif what == "forget":
            table.forget(who)
            history.append((what, who, now))
        else:
            last = {peer: (kind, at) for kind, peer, at in history}
            silent = {peer for peer, (kind, at) in last.items() if kind == "saw" and now - at > 3.0}
            assert set(table.expired(now)) == silent
            history += [("forget", peer, now) for peer in silent]
