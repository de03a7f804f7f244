"""Is a stop string found wherever it lies, and is nothing of it ever shown?"""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from coordinator.stop_strings import Increment, StopMatcher


def run(stops: tuple[str, ...], increments: list[str]) -> tuple[list[str], str | None]:
    """What is shown after each increment and the flush, and the stop string."""
    matcher, shown = StopMatcher(stops), []
    for increment in increments:
        result = matcher.push(increment)
        shown.append(result.text)
        if result.stop is not None:
            return shown, result.stop
    return [*shown, matcher.flush()], None


def brute_force(stops: tuple[str, ...], text: str) -> tuple[str, str | None]:
    """Try every end, then every start."""
    for end in range(len(text) + 1):
        for start in range(end):
            if text[start:end] in stops:
                return text[:start], text[start:end]
    return text, None


LETTERS = st.text(alphabet="aabbcé😀", max_size=5)
STOPS = st.lists(LETTERS.filter(bool), max_size=4).map(tuple)


@given(STOPS, st.lists(LETTERS, max_size=20))
@example(("abcd", "bc"), ["abcd"])
@example(("bc", "abc"), ["a", "b", "c"])
@example(("aab",), ["aaaa", "a", "b"])
def test_equals_a_search_of_the_whole_text(stops: tuple[str, ...], increments: list[str]) -> None:
    shown, stop = run(stops, increments)
    assert ("".join(shown), stop) == brute_force(stops, "".join(increments))


@given(STOPS, st.lists(LETTERS, max_size=20))
def test_holds_exactly_what_may_begin_a_stop_string(stops: tuple[str, ...], increments: list[str]) -> None:
    matcher, shown, text = StopMatcher(stops), "", ""
    for increment in increments:
        result = matcher.push(increment)
        if result.stop is not None:
            return
        text += increment
        shown += result.text
        suffixes = (text[start:] for start in range(len(text) + 1))
        held = next(suffix for suffix in suffixes if not suffix or any(stop.startswith(suffix) for stop in stops))
        assert shown + held == text


def test_ends_first_wins_then_the_longest() -> None:
    assert StopMatcher(("abcd", "bc")).push("xabcd") == Increment("xa", "bc")
    assert StopMatcher(("bc", "abc")).push("xabcd") == Increment("x", "abc")


def test_holds_back_over_several_increments() -> None:
    assert run(("\n\nUser:",), ["Hi", "\n", "\n", "Us", "ers"]) == (["Hi", "", "", "", "\n\nUsers", ""], None)
    assert run(("\n\nUser:",), ["Hi\n", "\nUser", ": x"]) == (["Hi", "", ""], "\n\nUser:")
    assert run(("END",), ["the E", "N"]) == (["the ", "", "EN"], None)


def test_without_stop_strings_nothing_is_held() -> None:
    assert run((), ["a", "", "b"]) == (["a", "", "b", ""], None)


def test_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        StopMatcher(("a", ""))
