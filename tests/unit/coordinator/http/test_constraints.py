"""Are requests that ask for two formats at once, or for none that there is, refused by name?"""

import json
from typing import Any

import msgspec
import pytest

from coordinator.http import constraints
from coordinator.http.constraints import Constraint
from coordinator.http.errors import ApiError
from coordinator.http.requests import ChatRequest, CompletionRequest

TOOLS = [{"type": "function", "function": {"name": "f"}}]
JSON = {"type": "json_object"}


def of_chat(**fields: Any) -> Constraint | None:
    body = {"messages": [{"role": "user", "content": "hi"}], **fields}
    return constraints.of_chat(msgspec.json.decode(json.dumps(body), type=ChatRequest))


def of_completion(**fields: Any) -> Constraint | None:
    body = msgspec.json.decode(json.dumps({"prompt": "hi", **fields}), type=CompletionRequest)
    return constraints.of_format(body)


BOTH = pytest.mark.parametrize("of", [of_chat, of_completion])


@BOTH
@pytest.mark.parametrize("fields", [{}, {"response_format": {"type": "text"}}, {"response_format": None}])
def test_who_asks_for_nothing_gets_no_grammar(of: Any, fields: dict[str, Any]) -> None:
    assert of(**fields) is None


@pytest.mark.parametrize("choice", [None, "auto", "none"])
def test_tools_that_may_be_called_ask_for_no_grammar(choice: str | None) -> None:
    assert of_chat(tools=TOOLS, tool_choice=choice) is None


@BOTH
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": None}}, "structured_outputs"),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "x", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"json": {}, "json_object": True}}, "structured_outputs"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": "[]"}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": '{"a":' * 100_000}}, "structured_outputs.json"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema"),
    ],
)
def test_a_format_that_says_nothing_or_two_things_is_refused(of: Any, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as error:
        of(**fields)
    assert (error.value.status, error.value.param, error.value.code) == (400, param, "invalid_value")
    assert len(error.value.body()) < 4096


def test_a_required_call_needs_its_tools() -> None:
    with pytest.raises(ApiError) as error:
        of_chat(tool_choice="required", response_format={"type": "text"})
    assert error.value.param == "tool_choice"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": JSON}, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}},
            "response_format",
        ),
        ({"structured_outputs": {"json": {"type": "object"}}}, "structured_outputs"),
        ({"structured_outputs": {"json": '{"type": "object"}'}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a+"}}, "structured_outputs"),
        ({"structured_outputs": {"choice": ["a", "b"]}}, "structured_outputs"),
        ({"structured_outputs": {"grammar": "start: /a/"}}, "structured_outputs"),
        ({"structured_outputs": {"json_object": True}}, "structured_outputs"),
    ],
)
@BOTH
def test_every_way_to_ask_makes_a_grammar_and_remembers_its_name(of: Any, fields: dict[str, Any], param: str) -> None:
    constraint = of(**fields)
    assert constraint is not None
    assert constraint.param == param
    assert constraint.grammar


def test_a_call_that_is_required_is_made_under_the_grammar_of_its_schema() -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in ("f", "g")]
    required = of_chat(tools=tools, tool_choice="required")
    named = of_chat(tools=tools, tool_choice={"type": "function", "function": {"name": "g"}})
    assert required is not None
    assert named is not None
    assert (required.param, named.param) == ("tools", "tools")
    assert '"f"' in required.grammar.replace("\\", "")
    assert '"f"' not in named.grammar.replace("\\", "")
