"""Which grammar does a request ask its answer to match?

Pure. Brings together the ways to ask: `response_format`, `structured_outputs`, and a tool that has to be called. What a
grammar is and what is too large for one is `coordinator.structured`'s business.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from coordinator import structured
from coordinator.http.errors import ApiError
from coordinator.http.requests import ChatRequest, CompletionRequest, ResponseFormat, StructuredOutputs
from coordinator.http.tools import call_schema, tool_choice


@dataclass(frozen=True, slots=True)
class Constraint:
    """`param` is the field of the body that asked for it."""

    grammar: str
    param: str


def of_chat(body: ChatRequest) -> Constraint | None:
    """
    Raises:
        ApiError: 400, naming the parameter.
    """
    asked = of_format(body)
    choice, tools = tool_choice(body)
    if choice != "required":
        return asked
    if asked is not None:
        raise ApiError(
            400, "tool_choice that requires a call leaves no room for a format", "invalid_value", "tool_choice"
        )
    return _constraint("tools", lambda: structured.json_schema(call_schema(tools)))


def of_format(body: ChatRequest | CompletionRequest) -> Constraint | None:
    """
    Raises:
        ApiError: 400, naming the parameter.
    """
    wanted = None if body.response_format is None else _of_response_format(body.response_format)
    if body.structured_outputs is None:
        return wanted
    if wanted is not None:
        message = "give either response_format or structured_outputs"
        raise ApiError(400, message, "invalid_value", "structured_outputs")
    return _of_structured_outputs(body.structured_outputs)


def _of_response_format(wanted: ResponseFormat) -> Constraint | None:
    match wanted.type:
        case "text":
            return None
        case "json_object":
            return _constraint("response_format", structured.json_object)
        case "json_schema":
            if wanted.json_schema is None or wanted.json_schema.schema is None:
                param = "response_format.json_schema.schema"
                raise ApiError(400, f"{param} is missing", "invalid_value", param)
            schema = wanted.json_schema.schema
            return _constraint("response_format", lambda: structured.json_schema(schema))


def _of_structured_outputs(wanted: StructuredOutputs) -> Constraint:
    param = "structured_outputs"
    asked: list[Callable[[], str]] = []
    if wanted.json is not None:
        schema = _schema(wanted.json)
        asked.append(lambda: structured.json_schema(schema))
    if (regex := wanted.regex) is not None:
        asked.append(lambda: structured.regex(regex))
    if (choice := wanted.choice) is not None:
        asked.append(lambda: structured.choice(choice))
    if (grammar := wanted.grammar) is not None:
        asked.append(lambda: structured.grammar(grammar))
    if wanted.json_object:
        asked.append(structured.json_object)
    if len(asked) != 1:
        message = f"{param}: give exactly one of json, regex, choice, grammar, json_object"
        raise ApiError(400, message, "invalid_value", param)
    return _constraint(param, asked[0])


def _schema(schema: dict[str, Any] | str) -> dict[str, Any]:
    if not isinstance(schema, str):
        return schema
    try:
        return msgspec.json.decode(schema, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError) as error:
        message = f"structured_outputs.json is not a JSON object: {error}"
        raise ApiError(400, message, "invalid_value", "structured_outputs.json") from error


def _constraint(param: str, grammar: Callable[[], str]) -> Constraint:
    try:
        return Constraint(grammar(), param)
    except ValueError as error:
        raise ApiError(400, f"{param}: {error}", "invalid_value", param, limit="grammar") from error
