"""Are text and calls told apart, however the answer was cut into pieces?"""

import json
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.http.requests import Tool, ToolFunction
from coordinator.http.tools import (
    AnswerReader,
    Call,
    JsonReader,
    TaggedReader,
    TextReader,
    call_schema,
    form_of,
    parse,
)

CALL = '{"name": "f", "arguments": {"x": 1}}'
F = Call("f", '{"x":1}')
G = Call("g", "{}")
READERS: list[Callable[[], AnswerReader]] = [TextReader, TaggedReader, JsonReader]


def read(reader: AnswerReader, pieces: Sequence[str]) -> tuple[str, tuple[Call, ...]]:
    """What becomes certain of an answer that comes in these pieces."""
    shown = [*(reader.push(piece) for piece in pieces), reader.finish()]
    return "".join(piece.text for piece in shown), tuple(call for piece in shown for call in piece.calls)


TAGGED = [
    ("just text", "just text", ()),
    ("", "", ()),
    (f"<tool_call>{CALL}</tool_call>", "", (F,)),
    (f"<tool_call>\n{CALL}\n</tool_call>", "", (F,)),
    (f"I look. <tool_call>{CALL}</tool_call> Done.", "I look.  Done.", (F,)),
    (f'<tool_call>{CALL}</tool_call>\n<tool_call>{{"name":"g","arguments":{{}}}}</tool_call>', "\n", (F, G)),
    (f'<tool_call>[{CALL},{{"name":"g","arguments":{{}}}}]</tool_call>', "", (F, G)),
    (f"<tool_call>{CALL}", "", (F,)),
    (f"a<tool_call>{CALL}", "a", (F,)),
    ("<tool_call>{", "<tool_call>{", ()),
    (f"<tool_call>{CALL}</tool", f"<tool_call>{CALL}</tool", ()),
    ("<tool_call>no json</tool_call>!", "<tool_call>no json</tool_call>!", ()),
    ("<tool_call></tool_call>", "<tool_call></tool_call>", ()),
    ('<tool_call>{"x": 1}</tool_call>', '<tool_call>{"x": 1}</tool_call>', ()),
    (f"<tool_call>x</tool_call><tool_call>{CALL}</tool_call>", "<tool_call>x</tool_call>", (F,)),
    ("<tool_ca", "<tool_ca", ()),
    ("a < b <tool b <tool_calls", "a < b <tool b <tool_calls", ()),
    (f"<<tool_call>{CALL}</tool_call>", "<", (F,)),
    ("</tool_call> <tool", "</tool_call> <tool", ()),
    (CALL, CALL, ()),
]
JSON = [
    ("just text", "just text", ()),
    ("", "", ()),
    ("  ", "  ", ()),
    (CALL, "", (F,)),
    (f" \n{CALL}\n", "", (F,)),
    (f'[{CALL}, {{"name": "g", "parameters": {{}}}}]', "", (F, G)),
    ('{"name": "f", "parameters": {"x": 1}}', "", (F,)),
    (f"[TOOL_CALLS][{CALL}]", "", (F,)),
    (f"[TOOL_CALLS] [{CALL}]", "", (F,)),
    ("[TOOL_CALLS]x", "[TOOL_CALLS]x", ()),
    ("[TOOL", "[TOOL", ()),
    ('{"x": 1}', '{"x": 1}', ()),
    ("[1, 2]", "[1, 2]", ()),
    ("[]", "[]", ()),
    (f"[{CALL}, 1]", f"[{CALL}, 1]", ()),
    (f"{CALL} and more", f"{CALL} and more", ()),
    (f"see {CALL}", f"see {CALL}", ()),
    ("{", "{", ()),
    ('{"name": "Bob", "age": 3}', '{"name": "Bob", "age": 3}', ()),
]


@pytest.mark.parametrize(
    ("reader", "text", "shown", "calls"),
    [(TaggedReader, *case) for case in TAGGED] + [(JsonReader, *case) for case in JSON],
)
def test_text_and_calls(reader: Callable[[], AnswerReader], text: str, shown: str, calls: tuple[Call, ...]) -> None:
    assert read(reader(), [text]) == (shown, calls)
    assert read(reader(), list(text)) == (shown, calls)
    for cut in range(len(text)):
        assert read(reader(), [text[:cut], text[cut:]]) == (shown, calls)


def test_text_alone_is_never_a_call() -> None:
    assert read(TextReader(), [f"<tool_call>{CALL}</tool_call>"]) == (f"<tool_call>{CALL}</tool_call>", ())


_WORDS = [
    "<tool_call>",
    "</tool_call>",
    CALL,
    "[TOOL_CALLS]",
    "[",
    "]",
    "{",
    "}",
    "<",
    "tool_call>",
    ",",
    " ",
    "x",
    "é",
]


@given(
    st.sampled_from(READERS),
    st.lists(st.sampled_from(_WORDS) | st.text(max_size=3), max_size=8),
    st.lists(st.integers(min_value=0, max_value=120), max_size=12),
)
def test_the_cuts_do_not_matter(make: Callable[[], AnswerReader], words: list[str], cuts: list[int]) -> None:
    text = "".join(words)
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[start:end] for start, end in pairwise(places)]
    assert read(make(), pieces) == read(make(), [text])


@given(st.sampled_from(READERS), st.text(alphabet='<>/_tolca{}[]" x', max_size=60))
def test_nothing_is_lost_where_there_is_no_call(make: Callable[[], AnswerReader], text: str) -> None:
    shown, calls = read(make(), list(text))
    assert (shown, calls) == (text, ())


def test_text_is_shown_as_soon_as_it_cannot_be_a_call() -> None:
    tagged = TaggedReader()
    assert tagged.push("hi <too").text == "hi "
    assert tagged.push("th").text == "<tooth"
    assert tagged.push(" a<").text == " a"
    json_ = JsonReader()
    assert json_.push(" ").text == ""
    assert json_.push("hi").text == " hi"
    assert json_.push("{").text == "{"


def test_a_call_is_given_out_when_it_is_complete() -> None:
    tagged = TaggedReader()
    assert tagged.push(f"<tool_call>{CALL}</tool_call").calls == ()
    assert tagged.push(">").calls == (F,)
    assert tagged.finish().calls == ()


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('{"name": "f", "arguments": {}}', (Call("f", "{}"),)),
        ('{"name": "f", "arguments": {"a": [1, null, "é"]}, "id": 3}', (Call("f", '{"a":[1,null,"é"]}'),)),
        ('{"name": "f", "arguments": {"big": 123456789012345678901}}', (Call("f", '{"big":123456789012345678901}'),)),
        ('{"name": "f", "arguments": "{}"}', ()),
        ('{"name": "f", "arguments": null}', ()),
        ('{"name": "f", "arguments": [1]}', ()),
        ('{"name": 1, "arguments": {}}', ()),
        ('{"name": "f"}', ()),
        ('{"arguments": {}}', ()),
        ("1", ()),
        ("null", ()),
        ('{"name": "f", "arguments": {"x": NaN}}', ()),
        ('{"name": "f", "arguments": {"x": 1e400}}', ()),
        ('{"name": "f", "arguments": {"x": ' + "1" * 5000 + "}}", ()),
        ('{"name": "f", "arguments": {"x": ' + "[" * 100_000 + "]" * 100_000 + "}}", ()),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_a_call(text: str, calls: tuple[Call, ...]) -> None:
    assert parse(text) == calls


@pytest.mark.parametrize(
    ("template", "form"),
    [(None, "json"), ("", "json"), ("{{ tools }}", "json"), ("use <tool_call> and </tool_call>", "tagged")],
)
def test_the_form_is_read_off_the_template(template: str | None, form: str) -> None:
    assert form_of(template) == form


def tool(name: str, parameters: dict[str, object] | None = None) -> Tool:
    return Tool(function=ToolFunction(name=name, parameters=parameters))


def test_the_schema_of_a_call_allows_the_tools_and_nothing_else() -> None:
    parameters: dict[str, object] = {"type": "object", "properties": {"city": {"type": "string"}}}
    weather = {
        "type": "object",
        "properties": {"name": {"const": "weather"}, "arguments": parameters},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
    clock = {
        "type": "object",
        "properties": {"name": {"const": "clock"}, "arguments": {"type": "object"}},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
    assert call_schema([tool("weather", parameters)]) == weather
    assert call_schema([tool("weather", parameters), tool("clock")]) == {"anyOf": [weather, clock]}


def test_what_the_schema_of_a_call_allows_is_read_as_that_call() -> None:
    made = json.dumps({"name": "weather", "arguments": {"city": "Köln"}})
    assert read(JsonReader(), list(made)) == ("", (Call("weather", '{"city":"Köln"}'),))
