"""Is every request that the model could not serve refused, with the parameter that has to change?"""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.config import RequestLimits
from coordinator.validation import InvalidRequest, check_form, check_length, resolve
from engine.stopping import token_limit
from runtime.description import ModelInfo
from runtime.params import SamplingParams
from transport.messages.client import ChatMessage, GenerateRequest

MODEL = ModelInfo(name="m", vocab_size=100, max_model_len=32, eos_token_ids=(2,))
MESSAGES = (ChatMessage(role="user", content="hi"),)


def refused(prompt: list[int], sampling: SamplingParams, kv_tokens: int = 1000) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        resolve(prompt, sampling, MODEL, kv_tokens, fresh_seed=7)
    return caught.value


# --- form ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        GenerateRequest(prompt=""),
        GenerateRequest(prompt="x", model="m"),
        GenerateRequest(prompt_token_ids=()),
        GenerateRequest(messages=MESSAGES),
    ],
)
def test_exactly_one_prompt_is_well_formed(request_: GenerateRequest) -> None:
    check_form(request_, "m")


@pytest.mark.parametrize(
    ("request_", "param", "words"),
    [
        (GenerateRequest(), "prompt", "none of them"),
        (GenerateRequest(prompt="x", messages=MESSAGES), "prompt", "prompt and messages"),
        (GenerateRequest(prompt="", prompt_token_ids=()), "prompt", "prompt and prompt_token_ids"),
        (GenerateRequest(messages=()), "messages", "empty"),
        (GenerateRequest(prompt="x", model="other"), "model", "'m'"),
    ],
)
def test_an_ill_formed_request_names_its_parameter(request_: GenerateRequest, param: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        check_form(request_, "m")
    assert caught.value.param == param
    assert caught.value.code == ("model_not_found" if param == "model" else "invalid_request")


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenised() -> None:
    check_length(32 * 5, 5, MODEL)
    with pytest.raises(InvalidRequest, match="161 characters") as caught:
        check_length(32 * 5 + 1, 5, MODEL)
    assert caught.value.param == "prompt"


# --- what depends on the model ---------------------------------------------------------------------------------------


def test_an_empty_prompt_is_refused() -> None:
    assert refused([], SamplingParams()).param == "prompt"


def test_a_token_outside_the_vocabulary_is_refused() -> None:
    resolve([99], SamplingParams(), MODEL, 1000, 7)
    error = refused([1, 100], SamplingParams())
    assert error.param == "prompt_token_ids"
    assert "100" in error.message


def test_the_prompt_leaves_room_for_one_token() -> None:
    assert resolve([1] * 31, SamplingParams(), MODEL, 1000, 7).max_tokens == 1
    assert refused([1] * 32, SamplingParams()).param == "prompt"


def test_max_tokens_fits_the_context() -> None:
    assert resolve([1] * 22, SamplingParams(max_tokens=10), MODEL, 1000, 7).max_tokens == 10
    error = refused([1] * 22, SamplingParams(max_tokens=11))
    assert error.param == "max_tokens"
    assert "room for 10" in error.message


def test_open_max_tokens_is_what_context_and_pool_have_room_for() -> None:
    assert resolve([1] * 22, SamplingParams(), MODEL, 1000, 7).max_tokens == 10
    assert resolve([1] * 22, SamplingParams(), MODEL, 24, 7).max_tokens == 3, "22 + 3 - 1 tokens of KV"
    assert resolve([1] * 22, SamplingParams(), MODEL, 5, 7).max_tokens == 1


def test_min_tokens_is_not_above_max_tokens_even_if_that_was_open() -> None:
    assert resolve([1], SamplingParams(min_tokens=4, max_tokens=4), MODEL, 1000, 7).min_tokens == 4
    assert refused([1], SamplingParams(min_tokens=5, max_tokens=4)).param == "min_tokens"
    assert refused([1] * 30, SamplingParams(min_tokens=3)).param == "min_tokens"


@pytest.mark.parametrize("param", ["logit_bias", "stop_token_ids"])
def test_ids_in_parameters_are_in_the_vocabulary(param: str) -> None:
    for token, good in ((99, True), (100, False)):
        sampling = (
            SamplingParams(logit_bias={token: 1.0})
            if param == "logit_bias"
            else SamplingParams(stop_token_ids=(1, token))
        )
        if good:
            resolve([1], sampling, MODEL, 1000, 7)
        else:
            assert refused([1], sampling).param == param


def test_a_seed_is_drawn_only_where_the_client_gave_none() -> None:
    assert resolve([1], SamplingParams(), MODEL, 1000, 7).seed == 7
    assert resolve([1], SamplingParams(seed=0), MODEL, 1000, 7).seed == 0


def test_everything_else_stays_as_it_was() -> None:
    sampling = SamplingParams(max_tokens=3, seed=1, temperature=0.5, top_k=4, stop=("x",), logprobs=2)
    assert resolve([1], sampling, MODEL, 1000, 7) == sampling


@given(st.integers(1, 40), st.none() | st.integers(1, 40), st.integers(1, 60))
def test_what_is_accepted_is_what_the_workers_will_generate(prompt: int, max_tokens: int | None, kv: int) -> None:
    sampling = SamplingParams(max_tokens=max_tokens)
    try:
        resolved = resolve([1] * prompt, sampling, MODEL, kv, 7)
    except InvalidRequest:
        assert prompt >= 32 or (max_tokens is not None and prompt + max_tokens > 32)
        return
    assert resolved.max_tokens == token_limit(resolved, prompt, MODEL.max_model_len)


@pytest.mark.parametrize(
    ("changes", "param"), [({"min_tokens": 1}, "min_tokens"), ({"ignore_eos": True}, "ignore_eos")]
)
def test_what_contradicts_the_end_of_a_grammar_is_refused(changes: dict[str, Any], param: str) -> None:
    assert refused([1], SamplingParams(grammar="start: /a/", **changes)).param == param
    resolve([1], SamplingParams(**changes), MODEL, 1000, 7)


def test_a_grammar_may_come_with_everything_else() -> None:
    sampling = SamplingParams(
        grammar="start: /a/", stop_token_ids=(1,), stop=("x",), logit_bias={3: -100.0}, logprobs=1
    )
    assert resolve([1], sampling, MODEL, 1000, 7).grammar == "start: /a/"


def test_a_model_without_an_end_of_sequence_follows_no_grammar() -> None:
    endless = msgspec.structs.replace(MODEL, eos_token_ids=())
    with pytest.raises(InvalidRequest, match="no end-of-sequence token") as caught:
        resolve([1], SamplingParams(grammar="start: /a/"), endless, 1000, 7)
    assert caught.value.param == "grammar"


# --- bounds of this server --------------------------------------------------------------------------------------------


def test_a_server_may_take_shorter_prompts_than_its_model() -> None:
    limits = RequestLimits(max_prompt_tokens=3)
    resolve([1, 2, 3], SamplingParams(), MODEL, 1000, 7, limits)
    with pytest.raises(InvalidRequest, match="at most 3") as caught:
        resolve([1, 2, 3, 4], SamplingParams(), MODEL, 1000, 7, limits)
    assert (caught.value.param, caught.value.limit) == ("prompt", "prompt_tokens")


def test_a_server_may_give_shorter_answers_than_its_model() -> None:
    limits = RequestLimits(max_output_tokens=5)
    assert resolve([1], SamplingParams(max_tokens=5), MODEL, 1000, 7, limits).max_tokens == 5
    assert resolve([1], SamplingParams(), MODEL, 1000, 7, limits).max_tokens == 5, "an open one is bounded, too"
    with pytest.raises(InvalidRequest, match="at most 5") as caught:
        resolve([1], SamplingParams(max_tokens=6), MODEL, 1000, 7, limits)
    assert (caught.value.param, caught.value.limit) == ("max_tokens", "output_tokens")
