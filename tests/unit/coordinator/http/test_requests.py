"""Does every body become a request or a short 400 that names what is wrong, whatever was sent?"""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.http.errors import ApiError
from coordinator.http.requests import (
    _UNSUPPORTED,
    IGNORED,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
    decode,
    names,
)

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
COMPLETION: dict[str, Any] = {"prompt": "hi"}
FORMS = [(ChatRequest, CHAT), (CompletionRequest, COMPLETION)]
Form = Any
both_forms = pytest.mark.parametrize(("form", "body"), FORMS, ids=["chat", "completion"])


def encoded(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def refused(body: bytes, form: Form) -> dict[str, str | None]:
    with pytest.raises(ApiError) as error:
        decode(body, form)
    assert error.value.status == 400
    assert len(error.value.body()) < 4096
    return error.value.as_dict()


ASKS_FOR_SOMETHING: dict[str, Any] = {
    "suffix": "x",
    "best_of": 2,
    "prompt_logprobs": 1,
    "allowed_token_ids": [1],
    "bad_words": ["x"],
    "logits_processors": ["x"],
    "use_beam_search": True,
    "length_penalty": 0.5,
    "priority": 1,
    "functions": [{"name": "f"}],
    "function_call": "auto",
    "modalities": ["text", "audio"],
    "audio": {"voice": "x"},
    "prediction": {"type": "content", "content": "x"},
    "reasoning_effort": "high",
    "verbosity": "low",
    "web_search_options": {},
    "guided_json": {},
    "guided_regex": "x",
    "guided_choice": ["x"],
    "guided_grammar": "x",
    "chat_template": "x",
    "continue_final_message": True,
    "add_generation_prompt": False,
    "documents": [{"text": "x"}],
    "kv_transfer_params": {"remote_host": "somewhere"},
    "vllm_xargs": {"x": 1},
    "mm_processor_kwargs": {"x": 1},
}
HARMLESS: dict[str, list[Any]] = {
    "best_of": [1],
    "allowed_token_ids": [[]],
    "bad_words": [[]],
    "logits_processors": [[]],
    "use_beam_search": [False],
    "length_penalty": [1, 1.0],
    "priority": [0],
    "functions": [[]],
    "function_call": ["none"],
    "modalities": [["text"]],
    "continue_final_message": [False],
    "add_generation_prompt": [True],
    "documents": [[]],
    "vllm_xargs": [{}],
    "mm_processor_kwargs": [{}],
}


def test_every_unsupported_key_is_tested_here() -> None:
    assert ASKS_FOR_SOMETHING.keys() == _UNSUPPORTED.keys()
    assert HARMLESS.keys() == {key for key, harmless in _UNSUPPORTED.items() if harmless}


@both_forms
@pytest.mark.parametrize("key", ASKS_FOR_SOMETHING)
def test_an_unsupported_key_is_refused_by_its_name(form: Form, body: dict[str, Any], key: str) -> None:
    error = refused(encoded(**body, **{key: ASKS_FOR_SOMETHING[key]}), form)
    assert (error["param"], error["code"]) == (key, "unsupported_parameter")
    assert key in str(error["message"])


@both_forms
@pytest.mark.parametrize("key", ASKS_FOR_SOMETHING)
def test_an_unsupported_key_that_asks_for_nothing_is_taken(form: Form, body: dict[str, Any], key: str) -> None:
    plain, _ = decode(encoded(**body), form)
    for value in [None, *HARMLESS.get(key, ())]:
        assert decode(encoded(**body, **{key: value}), form)[0] == plain


@pytest.mark.parametrize(("key", "value"), [("best_of", True), ("priority", False), ("use_beam_search", 0)])
def test_true_is_not_one(key: str, value: object) -> None:
    assert refused(encoded(**COMPLETION, **{key: value}), CompletionRequest)["param"] == key


@both_forms
def test_labels_are_ignored_and_strangers_are_reported(form: Form, body: dict[str, Any]) -> None:
    known = {field.encode_name for field in msgspec.structs.fields(form)}
    assert not known & (IGNORED | _UNSUPPORTED.keys())
    labels = dict.fromkeys(IGNORED, "x")
    request, unknown = decode(encoded(**body, **labels, stranger=[1], Other=None), form)
    assert request == decode(encoded(**body), form)[0]
    assert set(unknown) == {"stranger", "Other"}


def test_the_names_of_strangers_can_stand_in_a_log() -> None:
    assert names(["a\nb", "x" * 1000, "\x1b[31m", "naïve"]) == ["a\\nb", "x" * 64, "\\x1b[31m", "na\\xefve"]


@both_forms
def test_null_means_the_same_as_a_field_that_is_not_there(form: Form, body: dict[str, Any]) -> None:
    plain, _ = decode(encoded(**body), form)
    optional = [field.encode_name for field in msgspec.structs.fields(form) if not field.required]
    assert len(optional) > 25
    for name in optional:
        assert decode(encoded(**body, **{name: None}), form) == (plain, ()), name
    assert decode(encoded(**body, **dict.fromkeys(optional)), form) == (plain, ())


@pytest.mark.parametrize(
    ("form", "field"), [(ChatRequest, "messages"), (CompletionRequest, "prompt"), (DetokenizeRequest, "tokens")]
)
def test_what_a_request_cannot_do_without_is_named(form: Form, field: str) -> None:
    assert refused(b"{}", form)["param"] == field
    assert refused(encoded(**{field: None}), form)["param"] == field


def test_a_missing_field_inside_is_named_with_its_place() -> None:
    error = refused(encoded(messages=[{"role": "user", "content": "hi"}, {"content": "x"}]), ChatRequest)
    assert str(error["param"]).startswith("messages")
    assert str(error["param"]).endswith("role")


BOUNDS: list[tuple[str, list[Any], list[Any]]] = [
    ("max_tokens", [1, 1 << 20], [0, -1, (1 << 20) + 1, 1 << 63, 1.5, "1", True]),
    ("n", [1, 1024], [0, -1, 1025, 10**9, True]),
    ("temperature", [0, 0.0, 2, 100], [-1, -0.01, 100.5, "1", True]),
    ("top_p", [0.01, 1, 1.0], [0, 2, -1, "1"]),
    ("top_k", [-1, 0, 5, (1 << 31) - 1], [-2, 1 << 31, 0.5]),
    ("min_p", [0, 1], [-0.1, 1.1]),
    ("seed", [0, -1, (1 << 63) - 1, -(1 << 63)], [1 << 63, 1 << 64, "1", 0.5]),
    ("presence_penalty", [-2, 0, 2], [-2.1, 2.1]),
    ("frequency_penalty", [-2, 0, 2], [-2.1, 2.1]),
    ("repetition_penalty", [0.1, 10], [0, -1, 10.1]),
    ("min_tokens", [0, 5], [-1, 1 << 21]),
    ("logit_bias", [{}, {"5": 1}, {"5": -100}], [{"-1": 1}, {"x": 1}, {"5": 101}, {str(n): 1 for n in range(1025)}]),
    ("stop", ["x", [], ["x"] * 16], ["", [""], "x" * 257, ["x"] * 17, ["x"] * 10**5, "x" * 10**6, 1, [1]]),
    ("stop_token_ids", [[], [1]], [[-1], [1 << 31], [1] * 65, 1]),
    ("stream", [True, False], ["yes", 1, "true"]),
    ("stream_options", [{}, {"include_usage": True}, {"x": 1}], [{"include_usage": 1}, True, []]),
    ("ignore_eos", [True], [1, "x"]),
    ("truncate_prompt_tokens", [1], [0, -1, 1 << 31]),
    ("model", ["", "x" * 512], ["x" * 513, 1]),
    ("response_format", [{"type": "text"}], [{}, {"type": "xml"}, "json_object"]),
    ("structured_outputs", [{"regex": "x"}], [{"choice": []}, {"choice": ["x"] * 1025}, {"xml": 1}]),
    ("return_token_ids", [True], [1]),
]


@both_forms
@pytest.mark.parametrize(("name", "good", "bad"), BOUNDS, ids=[bound[0] for bound in BOUNDS])
def test_fields_have_bounds(form: Form, body: dict[str, Any], name: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        decode(encoded(**body, **{name: value}), form)
    for value in bad:
        error = refused(encoded(**body, **{name: value}), form)
        assert str(error["param"]).split(".")[0].split("[")[0] == name, value
        assert error["code"] == "invalid_value"


MORE_BOUNDS: list[tuple[Form, dict[str, Any]]] = [
    (ChatRequest, {"messages": []}),
    (ChatRequest, {"messages": [{"role": "robot", "content": "x"}]}),
    (ChatRequest, {"messages": [{"role": "user", "content": 1}]}),
    (ChatRequest, {"messages": "hi"}),
    (ChatRequest, {"messages": CHAT["messages"] * 4097}),
    (ChatRequest, {**CHAT, "logprobs": 1}),
    (ChatRequest, {**CHAT, "top_logprobs": 21}),
    (ChatRequest, {**CHAT, "top_logprobs": 10**6}),
    (ChatRequest, {**CHAT, "max_completion_tokens": 0}),
    (ChatRequest, {**CHAT, "tools": [{"type": "function", "function": {"name": "a b"}}]}),
    (ChatRequest, {**CHAT, "tools": [{"type": "function", "function": {"name": ""}}]}),
    (ChatRequest, {**CHAT, "tools": [{"type": "code", "function": {"name": "f"}}]}),
    (ChatRequest, {**CHAT, "tool_choice": "maybe"}),
    (ChatRequest, {**CHAT, "chat_template_kwargs": {str(n): n for n in range(65)}}),
    (CompletionRequest, {"prompt": []}),
    (CompletionRequest, {"prompt": [-1]}),
    (CompletionRequest, {"prompt": [1 << 31]}),
    (CompletionRequest, {"prompt": [[[1]]]}),
    (CompletionRequest, {"prompt": [1.5]}),
    (CompletionRequest, {"prompt": [True]}),
    (CompletionRequest, {"prompt": "x", "logprobs": True}),
    (CompletionRequest, {"prompt": "x", "logprobs": 21}),
    (CompletionRequest, {"prompt": "x", "echo": "yes"}),
    (DetokenizeRequest, {"tokens": [-1]}),
    (TokenizeRequest, {"messages": []}),
]


@pytest.mark.parametrize(("form", "body"), MORE_BOUNDS)
def test_the_fields_of_one_form_have_bounds(form: Form, body: dict[str, Any]) -> None:
    assert refused(encoded(**body), form)["param"] is not None


BAD_JSON = [
    b"",
    b" ",
    b"nonsense",
    b"[]",
    b"null",
    b'"x"',
    b"1",
    b"{",
    b'{"prompt":"x"} {}',
    b'{"prompt":"x",}',
    b'\xef\xbb\xbf{"prompt":"x"}',
    b'\x00{"prompt":"x"}',
    b'{"prompt":"\x00"}',
    b'{"prompt":"\xff"}',
    b'{"prompt":"\\ud800"}',
    b'{"prompt":"\\udc00\\ud800"}',
    b'{"prompt":"\\q"}',
    b'{"\xff":1,"prompt":"x"}',
    b'{"prompt":"x","temperature":NaN}',
    b'{"prompt":"x","temperature":Infinity}',
    b'{"prompt":"x","temperature":1e400}',
    b'{"prompt":"x","temperature":-1e400}',
    b'{"prompt":"x","seed":' + b"9" * 5000 + b"}",
    b'{"prompt":"x","priority":' + b"9" * 5000 + b"}",
    b'{"prompt":"x","suffix":"\\ud800"}',
    b'{"prompt":"x","stranger":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"prompt":"x","documents":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"prompt":"x","structured_outputs":{"json":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}}",
    b'{"prompt":' + b"[" * 100_000,
    b'{"a":' * 100_000,
]


@pytest.mark.parametrize("body", BAD_JSON, ids=lambda body: repr(body[:40]))
def test_bad_json_is_a_short_refusal(body: bytes) -> None:
    refused(body, CompletionRequest)


def test_the_last_of_two_equal_keys_counts() -> None:
    request, _ = decode(b'{"prompt":"x","prompt":"y","suffix":"x","suffix":null}', CompletionRequest)
    assert request.prompt == "y"
    assert refused(b'{"prompt":"x","suffix":null,"suffix":"x"}', CompletionRequest)["param"] == "suffix"


def test_the_text_of_a_refusal_does_not_grow_with_what_was_sent() -> None:
    for character in ("x", "\n", '"', "\U0001f600", "\u0085"):
        long = character * 100_000
        refused(encoded(**CHAT, response_format={"type": long}), ChatRequest)
        refused(encoded(messages=[{"role": long}]), ChatRequest)
        refused(encoded(**CHAT, structured_outputs={long: 1}), ChatRequest)
        refused(encoded(**CHAT, tool_choice=long), ChatRequest)


def decodes_or_refuses(body: bytes) -> None:
    for form in (ChatRequest, CompletionRequest, TokenizeRequest, DetokenizeRequest):
        try:
            decode(body, form)  # type: ignore[type-var]  # one after the other
        except ApiError as error:
            assert error.status == 400  # noqa: PT017 - both outcomes are good
            assert len(error.body()) < 4096  # noqa: PT017


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_request_or_a_short_refusal(body: bytes) -> None:
    decodes_or_refuses(body)


_FIELDS = sorted(
    {field.encode_name for form in (ChatRequest, CompletionRequest) for field in msgspec.structs.fields(form)}
    | _UNSUPPORTED.keys()
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(_FIELDS) | st.text(max_size=8), _JSON, max_size=6))
def test_arbitrary_json_is_a_request_or_a_short_refusal(body: dict[str, Any]) -> None:
    decodes_or_refuses(json.dumps({"prompt": "x", **body}).encode())
    decodes_or_refuses(json.dumps({**CHAT, **body}, ensure_ascii=False).encode(errors="surrogatepass"))
