"""Does a request end exactly when its parameters say so?"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.stopping import finish_reason, token_limit
from runtime.params import FinishReason, SamplingParams

EOS = (7, 8)
OTHER = 5


def reason(
    token_id: int, index: int, params: SamplingParams, prompt: int = 10, context: int = 100
) -> FinishReason | None:
    return finish_reason(token_id, index, params, EOS, prompt, context)


@pytest.mark.parametrize(
    ("token_id", "params", "expected"),
    [
        (OTHER, SamplingParams(), None),
        (7, SamplingParams(), FinishReason.STOP),
        (8, SamplingParams(), FinishReason.STOP),
        (7, SamplingParams(ignore_eos=True), None),
        (OTHER, SamplingParams(stop_token_ids=(3, OTHER)), FinishReason.STOP),
        (OTHER, SamplingParams(stop_token_ids=(3,)), None),
        (OTHER, SamplingParams(stop_token_ids=(OTHER,), ignore_eos=True), FinishReason.STOP),
        (7, SamplingParams(stop_token_ids=(7,), ignore_eos=True), FinishReason.STOP),
    ],
)
def test_stopping_tokens(token_id: int, params: SamplingParams, expected: FinishReason | None) -> None:
    assert reason(token_id, 0, params) == expected


def test_max_tokens_counts_from_one() -> None:
    params = SamplingParams(max_tokens=3)
    assert [reason(OTHER, index, params) for index in range(3)] == [None, None, FinishReason.LENGTH]
    assert reason(OTHER, 0, SamplingParams(max_tokens=1)) == FinishReason.LENGTH


def test_a_stopping_token_that_is_also_the_last_is_a_stop() -> None:
    assert reason(7, 2, SamplingParams(max_tokens=3)) == FinishReason.STOP


def test_context_ends_a_request_whatever_it_asks() -> None:
    for params in (SamplingParams(), SamplingParams(max_tokens=1000), SamplingParams(min_tokens=1000)):
        assert reason(OTHER, 88, params) is None
        assert reason(OTHER, 89, params) == FinishReason.LENGTH


def test_nothing_stops_before_min_tokens() -> None:
    params = SamplingParams(min_tokens=2, stop_token_ids=(OTHER,), max_tokens=9)
    for token in (7, OTHER):
        assert [reason(token, index, params) for index in range(3)] == [None, None, FinishReason.STOP]
    assert reason(7, 1, SamplingParams(min_tokens=5, max_tokens=2)) == FinishReason.LENGTH


@pytest.mark.parametrize(
    ("max_tokens", "prompt", "context", "limit"),
    [(None, 10, 100, 90), (5, 10, 100, 5), (95, 10, 100, 90), (None, 100, 100, 0), (5, 101, 100, 0), (1, 99, 100, 1)],
)
def test_token_limit(max_tokens: int | None, prompt: int, context: int, limit: int) -> None:
    assert token_limit(SamplingParams(max_tokens=max_tokens), prompt, context) == limit


@given(
    st.one_of(st.none(), st.integers(1, 40)),
    st.integers(0, 50),
    st.integers(1, 20),
    st.lists(st.sampled_from([OTHER, 7]), min_size=50, max_size=50),
)
def test_no_request_outgrows_its_limit(max_tokens: int | None, min_tokens: int, prompt: int, tokens: list[int]) -> None:
    params = SamplingParams(max_tokens=max_tokens, min_tokens=min_tokens)
    ends = [i for i, token in enumerate(tokens) if reason(token, i, params, prompt, context=32) is not None]
    limit = token_limit(params, prompt, 32)
    assert ends[0] + 1 <= limit
    assert ends[0] + 1 == limit or (tokens[ends[0]] == 7 and ends[0] >= min_tokens)
