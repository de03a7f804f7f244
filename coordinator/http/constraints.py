"""Which grammar does a request ask its answer to match?

Pure. Brings together the four ways to ask: `response_format`, `structured_outputs`, a tool that has to be called, and
nothing. What a grammar is and what is too large for one is `coordinator.structured`'s business.
"""

from typing import Any

import msgspec

from coordinator import structured
from coordinator.http.errors import ApiError
from coordinator.http.requests import ChatRequest, CompletionRequest, ResponseFormat, StructuredOutputs
from coordinator.http.tools import call_schema
from coordinator.http.translate import tool_choice


def of_chat(body: ChatRequest) -> str | None:
    """
    Raises:
        ApiError: 400, naming the parameter.
    """
    asked = _asked_for(body)
    choice, tools = tool_choice(body)
    if choice != "required":
        return asked
    if asked is not None:
        raise ApiError(
            400, "tool_choice that requires a call leaves no room for a format", "invalid_value", "tool_choice"
        )
    return _grammar("tools", json_schema=call_schema(tools))


def of_completion(body: CompletionRequest) -> str | None:
    """
    Raises:
        ApiError: 400, naming the parameter.
    """
    return _asked_for(body)


def _asked_for(body: ChatRequest | CompletionRequest) -> str | None:
    wanted = None if body.response_format is None else _of_format(body.response_format)
    if body.structured_outputs is None:
        return wanted
    if wanted is not None:
        message = "give either response_format or structured_outputs"
        raise ApiError(400, message, "invalid_value", "structured_outputs")
    return _of_structured(body.structured_outputs)


def _of_format(wanted: ResponseFormat) -> str | None:
    match wanted.type:
        case "text":
            return None
        case "json_object":
            return _grammar("response_format", json_object=True)
        case "json_schema":
            if wanted.json_schema is None or wanted.json_schema.schema is None:
                param = "response_format.json_schema.schema"
                raise ApiError(400, f"{param} is missing", "invalid_value", param)
            return _grammar("response_format", json_schema=wanted.json_schema.schema)


def _of_structured(wanted: StructuredOutputs) -> str | None:
    param = "structured_outputs"
    given = {
        "json_schema": _schema(wanted.json),
        "regex": wanted.regex,
        "choice": wanted.choice,
        "grammar": wanted.grammar,
        "json_object": wanted.json_object or None,
    }
    asked = {name: value for name, value in given.items() if value is not None}
    if len(asked) != 1:
        message = "give exactly one of json, regex, choice, grammar, json_object"
        raise ApiError(400, message, "invalid_value", param)
    return _grammar(param, **asked)


def _schema(schema: dict[str, Any] | str | None) -> dict[str, Any] | None:
    if not isinstance(schema, str):
        return schema
    try:
        return msgspec.json.decode(schema, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError) as error:
        message = f"structured_outputs.json is not a JSON object: {error}"
        raise ApiError(400, message, "invalid_value", "structured_outputs.json") from error


def _grammar(param: str, **wanted: Any) -> str:  # noqa: ANN401 - the arguments of `structured.grammar`
    try:
        return structured.grammar(**wanted)
    except ValueError as error:
        raise ApiError(400, f"{param}: {error}", "invalid_value", param) from error
