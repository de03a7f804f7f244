"""Which part of a model's answer is text, and which part calls a function?

Pure. Models write calls in the form that their chat template taught them, so the form is read off the template:
`<tool_call>{...}</tool_call>` (Hermes, Qwen), or a JSON object or list instead of text (Llama 3, Mistral). An answer
that has to be a call (`tool_choice` required, or a named function) is made under a grammar and is one JSON object.
A call is given out when it is complete, never in pieces.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import msgspec

from coordinator.http.errors import ApiError
from coordinator.http.requests import ChatRequest, NamedTool, Tool

ToolForm = Literal["tagged", "json"]
ToolChoice = Literal["none", "auto", "required"]
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_MISTRAL = "[TOOL_CALLS]"


@dataclass(frozen=True, slots=True)
class Call:
    name: str
    arguments: str  # a JSON object


@dataclass(frozen=True, slots=True)
class Piece:
    """What became certain: text for the reader, and complete calls."""

    text: str = ""
    calls: tuple[Call, ...] = ()


class AnswerReader(Protocol):
    def push(self, text: str) -> Piece: ...

    def finish(self) -> Piece:
        """The answer is over: what was held back."""
        ...


def tool_choice(body: ChatRequest) -> tuple[ToolChoice, tuple[Tool, ...]]:
    """Whether the model may or must call a function, and which ones it may.

    Raises:
        ApiError: a function is asked for that is not in `tools`.
    """
    tools = body.tools or ()
    if isinstance(body.tool_choice, NamedTool):
        name = body.tool_choice.function.name
        named = tuple(tool for tool in tools if tool.function.name == name)
        if not named:
            raise ApiError(400, f"tool_choice names {name!r}, which is not in tools", "invalid_value", "tool_choice")
        return "required", named
    if body.tool_choice in ("auto", "required") and not tools:
        raise ApiError(400, "tool_choice needs tools", "invalid_value", "tool_choice")
    return body.tool_choice or ("auto" if tools else "none"), tools


def form_of(chat_template: str | None) -> ToolForm:
    """The form in which a model with this template calls functions."""
    return "tagged" if chat_template is not None and _OPEN in chat_template else "json"


def call_schema(tools: Sequence[Tool]) -> dict[str, Any]:
    """The JSON schema of one call of one of `tools`."""
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool.function.name},
                "arguments": tool.function.parameters or {"type": "object"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


class TextReader:
    """Nothing is a call."""

    def push(self, text: str) -> Piece:
        return Piece(text)

    def finish(self) -> Piece:
        return Piece()


class TaggedReader:
    """Calls stand between tags, text before and after them; what is no JSON call between tags is text."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, text: str) -> Piece:
        self._held += text
        shown: list[str] = []
        calls: list[Call] = []
        while True:
            start = self._held.find(_OPEN)
            if start < 0:
                keep = _possible_start(self._held, _OPEN)
                shown.append(self._held[: len(self._held) - keep])
                self._held = self._held[len(self._held) - keep :]
                break
            end = self._held.find(_CLOSE, start)
            if end < 0:
                shown.append(self._held[:start])
                self._held = self._held[start:]
                break
            inside = self._held[start + len(_OPEN) : end]
            found = parse(inside)
            shown.append(self._held[:start] if found else self._held[: end + len(_CLOSE)])
            calls.extend(found)
            self._held = self._held[end + len(_CLOSE) :]
        return Piece("".join(shown), tuple(calls))

    def finish(self) -> Piece:
        """Some models end an answer instead of closing the tag."""
        held, self._held = self._held, ""
        found = parse(held.removeprefix(_OPEN)) if held.startswith(_OPEN) else ()
        return Piece("", found) if found else Piece(held)


class JsonReader:
    """The whole answer is one call, a list of calls, or text. It is text as soon as it does not begin like JSON."""

    def __init__(self) -> None:
        self._held = ""
        self._is_text = False

    def push(self, text: str) -> Piece:
        if self._is_text:
            return Piece(text)
        self._held += text
        begun = self._held.lstrip()
        if not begun or begun[0] in "{[" or _MISTRAL.startswith(begun[: len(_MISTRAL)]):
            return Piece()
        self._is_text = True
        held, self._held = self._held, ""
        return Piece(held)

    def finish(self) -> Piece:
        held, self._held = self._held, ""
        found = parse(held.strip().removeprefix(_MISTRAL))
        return Piece("", found) if found else Piece(held)


def parse(text: str) -> tuple[Call, ...]:
    """The calls that `text` holds as JSON, with `arguments` (or `parameters`, as Llama says); () if it does not."""
    try:
        value = msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        return ()
    entries = value if isinstance(value, list) else [value]
    calls = [_call(entry) for entry in entries]
    return tuple(call for call in calls if call is not None) if all(calls) else ()


def _call(entry: object) -> Call | None:
    """An object with a name alone is data: `{"name": "Bob"}` answers a question."""
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return None
    arguments = entry.get("arguments", entry.get("parameters"))
    if not isinstance(arguments, dict):
        return None
    return Call(entry["name"], msgspec.json.encode(arguments).decode())


def _possible_start(text: str, tag: str) -> int:
    """How many characters at the end of `text` may be the beginning of `tag`."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if tag.startswith(text[-n:])), 0)
