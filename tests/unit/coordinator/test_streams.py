"""Does a client see every token once, and the text of its answer up to a stop string?"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.streams import Stream, StreamDelta, StreamEnd
from coordinator.text import ByteText
from runtime.params import FinishReason, SamplingParams
from runtime.stages import Ledger
from runtime.tokens import SampledToken
from tests.support.front import Front

STOP, LENGTH, CANCELLED = FinishReason.STOP, FinishReason.LENGTH, FinishReason.CANCELLED


def stream(*stop: str, stop_token_ids: tuple[int, ...] = ()) -> tuple[Front, Stream]:
    front = Front()
    sampling = SamplingParams(stop=stop, stop_token_ids=stop_token_ids)
    return front, Stream(front, ByteText().decoder(), sampling, prompt_tokens=5)


def tokens(data: bytes) -> tuple[SampledToken, ...]:
    return tuple(map(SampledToken, data))


def ended(front: Front) -> StreamEnd:
    assert front.end is not None
    return front.end


def test_tokens_are_delivered_with_their_text() -> None:
    front, answer = stream()
    assert answer.push(0, tokens(b"ab")) is False
    assert answer.push(2, tokens(b"c")) is False
    assert front.deltas == [StreamDelta(0, tokens(b"ab"), "ab"), StreamDelta(2, tokens(b"c"), "c")]
    ledger = Ledger(total_s=1.0)
    answer.finish(LENGTH, ledger)
    assert front.end == StreamEnd(LENGTH, "", 5, 3, ledger, None)


def test_half_a_character_is_held_back_and_flushed() -> None:
    front, answer = stream()
    answer.push(0, tokens("é".encode()[:1]))
    assert front.text == ""
    assert len(front.token_ids) == 1
    answer.finish(LENGTH, Ledger())
    assert ended(front).text == "\ufffd"


def test_a_gap_in_the_tokens_is_a_broken_invariant() -> None:
    _, answer = stream()
    answer.push(0, tokens(b"a"))
    for index in (0, 2):
        with pytest.raises(AssertionError, match="1 delivered tokens"):
            answer.push(index, tokens(b"b"))


def test_a_stop_string_ends_the_text_before_it() -> None:
    front, answer = stream("STOP")
    assert answer.push(0, tokens(b"go S")) is False
    assert front.text == "go "
    assert answer.push(4, tokens(b"TO")) is False
    assert answer.push(6, tokens(b"Pand more")) is True
    assert front.text == "go "
    assert front.token_ids == list(b"go STOP"), "the tokens that made the stop string count, those behind it do not"
    answer.finish(STOP, Ledger())
    assert (ended(front).reason, ended(front).stop_reason, ended(front).text) == (STOP, "STOP", "")
    assert ended(front).completion_tokens == 7


def test_nothing_is_delivered_after_a_stop_string() -> None:
    front, answer = stream("b")
    assert answer.push(0, tokens(b"ab")) is True
    assert answer.push(2, tokens(b"cd")) is False
    assert answer.push(9, tokens(b"ef")) is False, "the machine may be tokens ahead"
    assert front.token_ids == list(b"ab")


def test_a_stop_string_wins_over_the_reason_of_the_last_token() -> None:
    front, answer = stream("b")
    answer.push(0, tokens(b"ab"))
    answer.finish(LENGTH, Ledger())
    assert (ended(front).reason, ended(front).stop_reason) == (STOP, "b")


def test_what_might_have_become_a_stop_string_is_flushed() -> None:
    front, answer = stream("STOP")
    answer.push(0, tokens(b"go STO"))
    answer.finish(LENGTH, Ledger())
    assert front.deltas[0].text == "go "
    assert ended(front).text == "STO"
    assert ended(front).reason is LENGTH


def test_a_stop_string_that_the_flush_completes_still_counts() -> None:
    front, answer = stream("\ufffd")
    answer.push(0, tokens(b"a" + "é".encode()[:1]))
    answer.finish(LENGTH, Ledger())
    assert (front.text, ended(front).reason, ended(front).stop_reason) == ("a", STOP, "\ufffd")


@pytest.mark.parametrize(
    ("last", "reason", "stop_reason"), [(b"z", STOP, ord("z")), (b"\x04", STOP, None), (b"z", LENGTH, None)]
)
def test_the_stop_reason_is_the_stop_token_that_was_asked_for(
    last: bytes, reason: FinishReason, stop_reason: int | None
) -> None:
    front, answer = stream(stop_token_ids=(ord("z"),))
    answer.push(0, tokens(b"a" + last))
    answer.finish(reason, Ledger())
    assert (ended(front).reason, ended(front).stop_reason) == (reason, stop_reason)


def test_a_request_cancelled_before_its_first_token_ends_empty() -> None:
    front, answer = stream("x")
    answer.finish(CANCELLED, Ledger())
    assert front.deltas == []
    assert ended(front) == StreamEnd(CANCELLED, "", 5, 0, Ledger(), None)


def test_a_failure_is_passed_on() -> None:
    front, answer = stream()
    answer.push(0, tokens(b"a"))
    answer.fail("worker_lost", "gone")
    assert front.failure == ("worker_lost", "gone", None)
    assert front.end is None


@given(st.text(alphabet="abé", max_size=20), st.lists(st.integers(1, 5), min_size=40, max_size=40))
def test_the_text_does_not_depend_on_how_the_tokens_come(answer_text: str, sizes: list[int]) -> None:
    data = answer_text.encode()
    front, answer = stream("aba", "bb")
    position, stopped = 0, False
    for size in sizes:
        if position < len(data):
            stopped = answer.push(position, tokens(data[position : position + size])) or stopped
            position += size
    answer.finish(LENGTH, Ledger())
    ends = {stop: answer_text.find(stop) + len(stop) for stop in ("aba", "bb") if stop in answer_text}
    assert stopped == bool(ends)
    if ends:
        first = min(ends, key=lambda stop: ends[stop])
        assert front.text == answer_text[: ends[first] - len(first)]
        assert ended(front).stop_reason == first
        assert bytes(front.token_ids) == answer_text[: ends[first]].encode()
    else:
        assert front.text == answer_text
        assert bytes(front.token_ids) == data
