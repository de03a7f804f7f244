"""Does every field of an HTTP request land where it should, and is what makes no sense refused by its name?"""

import json
from typing import Any

import msgspec
import pytest

from coordinator.http import translate
from coordinator.http.constraints import Constraint
from coordinator.http.errors import ApiError
from coordinator.http.requests import ChatRequest, CompletionRequest
from coordinator.http.translate import Asked, AskLimits
from runtime.params import SamplingParams
from transport.messages.client import ChatMessage, GenerateRequest, ToolCall

LIMITS = AskLimits(max_n=8, max_choices=20)
USER = [{"role": "user", "content": "hi"}]
WEATHER = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": {"type": "object"}}}
CLOCK = {"type": "function", "function": {"name": "clock"}}


def chat(grammar: str | None = None, **fields: Any) -> Asked:
    body = msgspec.json.decode(json.dumps({"messages": USER, **fields}), type=ChatRequest)
    return translate.chat(body, None if grammar is None else Constraint(grammar, "tools"), LIMITS)


def completion(grammar: str | None = None, **fields: Any) -> Asked:
    body = msgspec.json.decode(json.dumps({"prompt": "hi", **fields}), type=CompletionRequest)
    return translate.completion(body, None if grammar is None else Constraint(grammar, "x"), LIMITS)


def one(asked: Asked) -> GenerateRequest:
    (request,) = asked.requests
    return request


def refusal(ask: Any, **fields: Any) -> tuple[str | None, str]:
    with pytest.raises(ApiError) as error:
        ask(**fields)
    assert error.value.status == 400
    return error.value.param, error.value.message


BOTH = pytest.mark.parametrize("ask", [chat, completion])
SAMPLING: dict[str, tuple[Any, str, Any]] = {
    "temperature": (0.25, "temperature", 0.25),
    "top_p": (0.5, "top_p", 0.5),
    "top_k": (7, "top_k", 7),
    "min_p": (0.125, "min_p", 0.125),
    "repetition_penalty": (1.5, "repetition_penalty", 1.5),
    "presence_penalty": (0.5, "presence_penalty", 0.5),
    "frequency_penalty": (-0.5, "frequency_penalty", -0.5),
    "logit_bias": ({"5": 1.5}, "logit_bias", {5: 1.5}),
    "seed": (-9, "seed", -9),
    "min_tokens": (3, "min_tokens", 3),
    "max_tokens": (5, "max_tokens", 5),
    "ignore_eos": (True, "ignore_eos", True),
    "stop": (["a", "b"], "stop", ("a", "b")),
    "stop_token_ids": ([1, 2], "stop_token_ids", (1, 2)),
}


@BOTH
@pytest.mark.parametrize("name", SAMPLING)
def test_a_parameter_of_sampling_lands_there_and_nowhere_else(ask: Any, name: str) -> None:
    value, field, landed = SAMPLING[name]
    plain = one(ask())
    expected = msgspec.structs.replace(plain.sampling, **{field: landed})
    assert one(ask(**{name: value})) == msgspec.structs.replace(plain, sampling=expected)
    assert landed != getattr(plain.sampling, field)


def test_every_parameter_of_sampling_is_reachable() -> None:
    reached = {field for _, field, _ in SAMPLING.values()} | {"logprobs", "grammar"}
    assert reached == set(SamplingParams.__struct_fields__)


REST: dict[str, tuple[Any, str, Any]] = {
    "model": ("m", "model", "m"),
    "truncate_prompt_tokens": (9, "truncate_prompt_tokens", 9),
    "skip_special_tokens": (False, "skip_special_tokens", False),
    "include_stop_str_in_output": (True, "include_stop_string", True),
}


@BOTH
@pytest.mark.parametrize("name", REST)
def test_what_is_not_sampling_lands_in_the_request(ask: Any, name: str) -> None:
    value, field, landed = REST[name]
    plain = one(ask())
    assert one(ask(**{name: value})) == msgspec.structs.replace(plain, **{field: landed})
    assert landed != getattr(plain, field)


FORM: dict[str, tuple[Any, dict[str, Any]]] = {
    "return_token_ids": (True, {"return_token_ids": True}),
    "stream": (True, {"stream": True}),
    "n": (3, {"n": 3}),
}


@BOTH
@pytest.mark.parametrize("name", FORM)
def test_what_is_the_front_s_business_stays_there(ask: Any, name: str) -> None:
    value, changes = FORM[name]
    asked, plain = ask(**{name: value}), ask()
    assert asked.requests == plain.requests
    fields = {field: getattr(plain, field) for field in Asked.__dataclass_fields__}
    assert asked == Asked(**{**fields, **changes})


@BOTH
def test_the_defaults_are_those_of_the_api(ask: Any) -> None:
    asked = ask()
    assert (asked.n, asked.stream, asked.include_usage, asked.continuous_usage) == (1, False, False, False)
    assert (asked.return_token_ids, asked.echo, asked.logprobs, asked.tool_choice) == (False, False, False, "none")
    assert one(asked).sampling == SamplingParams(max_tokens=None if ask is chat else 16)


@BOTH
def test_a_single_stop_string_is_one_and_top_k_off_has_two_names(ask: Any) -> None:
    assert one(ask(stop="end")).sampling.stop == ("end",)
    assert one(ask(top_k=-1)).sampling.top_k == one(ask(top_k=0)).sampling.top_k == 0


@BOTH
def test_the_grammar_goes_along(ask: Any) -> None:
    assert one(ask(grammar="start: x")).sampling.grammar == "start: x"


@BOTH
def test_options_of_a_stream_need_a_stream(ask: Any) -> None:
    assert refusal(ask, stream_options={"include_usage": True})[0] == "stream_options"
    assert refusal(ask, stream=False, stream_options={})[0] == "stream_options"
    usage = ask(stream=True, stream_options={"include_usage": True})
    assert (usage.include_usage, usage.continuous_usage) == (True, False)
    running = ask(stream=True, stream_options={"continuous_usage_stats": True})
    assert (running.include_usage, running.continuous_usage) == (False, True)


# --- how much may be asked for ---------------------------------------------------------------------------------------


@BOTH
def test_n_has_a_limit(ask: Any) -> None:
    assert ask(n=8).choices == 8
    assert refusal(ask, n=9)[0] == "n"


def test_prompts_times_n_have_a_limit() -> None:
    assert completion(prompt=["x"] * 20).choices == 20
    assert completion(prompt=["x"] * 10, n=2).choices == 20
    assert refusal(completion, prompt=["x"] * 21)[0] == "prompt"
    param, message = refusal(completion, prompt=["x"] * 7, n=3)
    assert param == "prompt"
    assert "21" in message
    assert "20" in message


def test_too_many_prompts_are_refused_before_any_of_them_becomes_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translate, "GenerateRequest", None)
    assert refusal(completion, prompt=["x"] * 100_000)[0] == "prompt"


# --- prompts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "requests"),
    [
        ("hi", [("hi", None)]),
        ("", [("", None)]),
        (["a", "b"], [("a", None), ("b", None)]),
        (["a"], [("a", None)]),
        ([1, 2], [(None, (1, 2))]),
        ([[1], [2, 3]], [(None, (1,)), (None, (2, 3))]),
        ([[]], [(None, ())]),
    ],
)
def test_a_prompt_has_four_forms(prompt: Any, requests: list[tuple[str | None, tuple[int, ...] | None]]) -> None:
    asked = completion(prompt=prompt)
    assert [(one_.prompt, one_.prompt_token_ids) for one_ in asked.requests] == requests
    assert all(one_.messages is None for one_ in asked.requests)


@pytest.mark.parametrize("prompt", [["a", 1], [1, "a"], [1, [1]], [[1], 1], ["a", [1]], [[1], "a"], [1, "a", [1]]])
def test_a_list_that_mixes_forms_is_refused(prompt: Any) -> None:
    assert refusal(completion, prompt=prompt)[0] == "prompt"


def test_special_tokens_are_added_unless_a_completion_says_no() -> None:
    assert one(completion()).add_special_tokens
    assert one(completion(add_special_tokens=True)).add_special_tokens
    assert not one(completion(add_special_tokens=False)).add_special_tokens


def test_echo_is_the_front_s_business_and_excludes_logprobs() -> None:
    assert completion(echo=True).echo
    assert not completion(echo=False, logprobs=1).echo
    assert refusal(completion, echo=True, logprobs=0)[0] == "echo"


# --- lengths and log-probabilities -----------------------------------------------------------------------------------


def test_max_completion_tokens_wins_over_max_tokens() -> None:
    assert one(chat(max_completion_tokens=3, max_tokens=9)).sampling.max_tokens == 3
    assert one(chat(max_completion_tokens=3)).sampling.max_tokens == 3
    assert one(chat(max_tokens=9)).sampling.max_tokens == 9


def test_a_completion_has_16_tokens_unless_it_says_otherwise() -> None:
    assert one(completion()).sampling.max_tokens == 16
    assert one(completion(max_tokens=1)).sampling.max_tokens == 1


@pytest.mark.parametrize(
    ("ask", "fields", "shown", "sampled"),
    [
        (chat, {"logprobs": True}, True, 0),
        (chat, {"logprobs": True, "top_logprobs": 5}, True, 5),
        (chat, {"logprobs": False}, False, None),
        (chat, {"logprobs": False, "top_logprobs": None}, False, None),
        (completion, {"logprobs": 0}, True, 0),
        (completion, {"logprobs": 5}, True, 5),
        (completion, {"logprobs": None}, False, None),
    ],
)
def test_log_probabilities(ask: Any, fields: dict[str, Any], shown: bool, sampled: int | None) -> None:
    asked = ask(**fields)
    assert (asked.logprobs, one(asked).sampling.logprobs) == (shown, sampled)


def test_top_logprobs_need_logprobs() -> None:
    assert refusal(chat, top_logprobs=1)[0] == "top_logprobs"
    assert refusal(chat, top_logprobs=1, logprobs=False)[0] == "top_logprobs"


# --- chats -----------------------------------------------------------------------------------------------------------


def test_messages_keep_what_they_say() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    given = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}], "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "42", "tool_call_id": "c1"},
        {"role": "system", "content": ""},
    ]
    assert one(chat(messages=given)).messages == (
        ChatMessage(role="system", content="be brief"),
        ChatMessage(role="user", content="one\ntwo", name="ann"),
        ChatMessage(role="assistant", content="", tool_calls=(ToolCall(id="c1", name="f", arguments='{"a": 1}'),)),
        ChatMessage(role="tool", content="42", tool_call_id="c1"),
        ChatMessage(role="system", content=""),
    )


@pytest.mark.parametrize(
    ("message", "where"),
    [
        ({"role": "user"}, "messages[1].content"),
        ({"role": "user", "content": None}, "messages[1].content"),
        ({"role": "assistant", "content": None, "tool_calls": []}, "messages[1].content"),
        ({"role": "tool", "content": "x"}, "messages[1].tool_call_id"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "messages[1].content[0]"),
        ({"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text"}]}, "messages[1].content[1]"),
        ({"role": "user", "content": [{"type": "input_audio", "text": "x"}]}, "messages[1].content[0]"),
    ],
)
def test_a_message_without_text_is_refused_with_its_place(message: dict[str, Any], where: str) -> None:
    assert refusal(chat, messages=[*USER, message])[0] == where


def test_template_arguments_go_to_the_template() -> None:
    assert one(chat()).template_arguments == {}
    assert one(chat(chat_template_kwargs={"enable_thinking": False})).template_arguments == {"enable_thinking": False}


# --- tools -----------------------------------------------------------------------------------------------------------


def test_the_template_sees_tools_as_the_client_gave_them() -> None:
    assert one(chat(tools=[WEATHER, CLOCK])).tools == (WEATHER, CLOCK)
    assert one(chat()).tools == ()


@pytest.mark.parametrize(
    ("fields", "choice", "callable_", "shown"),
    [
        ({}, "none", [], []),
        ({"tools": []}, "none", [], []),
        ({"tool_choice": "none"}, "none", [], []),
        ({"tools": [WEATHER, CLOCK]}, "auto", ["weather", "clock"], ["weather", "clock"]),
        ({"tools": [WEATHER], "tool_choice": "auto"}, "auto", ["weather"], ["weather"]),
        ({"tools": [WEATHER], "tool_choice": "required"}, "required", ["weather"], ["weather"]),
        (
            {"tools": [WEATHER, CLOCK], "tool_choice": {"type": "function", "function": {"name": "clock"}}},
            "required",
            ["clock"],
            ["weather", "clock"],
        ),
    ],
)
def test_tool_choice(fields: dict[str, Any], choice: str, callable_: list[str], shown: list[str]) -> None:
    asked = chat(**fields)
    assert asked.tool_choice == choice
    assert [tool.function.name for tool in asked.tools] == callable_
    assert [tool["function"]["name"] for tool in one(asked).tools] == shown


def test_no_tool_is_shown_to_a_model_that_may_call_none() -> None:
    assert one(chat(tools=[WEATHER], tool_choice="none")).tools == ()


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_choice": "auto"},
        {"tool_choice": "required"},
        {"tool_choice": "required", "tools": []},
        {"tool_choice": {"type": "function", "function": {"name": "clock"}}},
        {"tool_choice": {"type": "function", "function": {"name": "clock"}}, "tools": [WEATHER]},
    ],
)
def test_a_choice_of_tools_that_are_not_there_is_refused(fields: dict[str, Any]) -> None:
    assert refusal(chat, **fields)[0] == "tool_choice"


def test_parallel_calls_are_allowed_unless_the_client_says_no() -> None:
    assert chat(tools=[WEATHER]).parallel_tool_calls
    assert chat(tools=[WEATHER], parallel_tool_calls=True).parallel_tool_calls
    assert not chat(tools=[WEATHER], parallel_tool_calls=False).parallel_tool_calls
