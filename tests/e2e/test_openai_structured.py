"""Does an answer that was asked to have a form have it, whatever the model would rather say?

The model is tiny and random, so that nothing but the grammar can be the reason.
"""

import enum
import json
import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from transformers import LlamaConfig

from coordinator.config import HttpConfig
from launch.config import CellOptions
from tests.support import tiny_models, tiny_tokenizer
from tests.support.http_cells import HostedCell, hosted

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

MODEL = "tiny"
TEMPLATE = (
    "{% if tools %}tools:{% for tool in tools %}{{ tool | tojson }}{% endfor %}\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
CHAT: list[Any] = [{"role": "user", "content": "hello"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of a place",
        "parameters": {
            "type": "object",
            "properties": {"unit": {"enum": ["C", "F"]}, "hours": {"type": "integer", "minimum": 0, "maximum": 48}},
            "required": ["unit", "hours"],
            "additionalProperties": False,
        },
    },
}
CLOCK: Any = {
    "type": "function",
    "function": {
        "name": "clock",
        "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
    },
}


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Point(openai.BaseModel):
    colour: Colour
    visible: bool


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostedCell]:
    directory = tmp_path_factory.mktemp("tiny")
    size = tiny_tokenizer.byte_level().get_vocab_size()
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=0,
    )
    tiny_models.save(config, directory)
    tiny_tokenizer.save_model(directory, TEMPLATE)
    with hosted(CellOptions(model_dir=str(directory), model_name=MODEL, http=HttpConfig(port=0))) as running:
        yield running
        running.pages_back()


@pytest.fixture(scope="module")
def client(cell: HostedCell) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{cell.api}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


# --- tools, as far as no grammar is needed ---------------------------------------------------------------------------


def test_tools_reach_the_template_unless_they_must_not_be_called(client: openai.OpenAI) -> None:
    """A random model calls nothing: what comes back is text, and the prompt tells whether the tools were in it."""

    def prompt_tokens(**more: Any) -> int:
        done = client.chat.completions.create(model=MODEL, messages=CHAT, max_tokens=4, seed=1, **more)
        choice = done.choices[0]
        assert choice.finish_reason in ("length", "stop")
        assert choice.message.tool_calls is None
        assert isinstance(choice.message.content, str)
        assert done.usage is not None
        return int(done.usage.prompt_tokens)

    bare = prompt_tokens()
    assert prompt_tokens(tools=[WEATHER], tool_choice="none") == bare
    assert prompt_tokens(tools=[WEATHER], tool_choice="auto") == prompt_tokens(tools=[WEATHER]) > bare


def test_a_tools_result_can_be_sent_back(client: openai.OpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"unit":"C"}'}}
    messages: list[Any] = [
        *CHAT,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "21"},
    ]
    done = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=3, tools=[WEATHER])
    assert done.usage is not None
    orphan: list[Any] = [{"role": "tool", "content": "21"}]
    with pytest.raises(openai.BadRequestError, match="tool_call_id"):
        client.chat.completions.create(model=MODEL, messages=orphan, max_tokens=3)


@pytest.mark.parametrize("choice", ["required", "auto"])
def test_a_choice_needs_tools(client: openai.OpenAI, choice: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=MODEL, messages=CHAT, tool_choice=choice)
    assert refused.value.param == "tool_choice"


def test_a_tool_that_is_not_there_cannot_be_chosen(client: openai.OpenAI) -> None:
    named: Any = {"type": "function", "function": {"name": "clock"}}
    with pytest.raises(openai.BadRequestError, match="not in tools"):
        client.chat.completions.create(model=MODEL, messages=CHAT, tools=[WEATHER], tool_choice=named)


# --- what needs a grammar --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_a_required_call_is_one_with_the_right_arguments(client: openai.OpenAI, seed: int) -> None:
    done = client.chat.completions.create(
        model=MODEL, messages=CHAT, tools=[WEATHER, CLOCK], tool_choice="required", seed=seed
    )
    choice = done.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert not choice.message.content
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert call.id.startswith("call_")
    _is_a_call(call.function.name, call.function.arguments)


def test_a_named_tool_is_the_one_that_is_called(client: openai.OpenAI) -> None:
    named: Any = {"type": "function", "function": {"name": "weather"}}
    done = client.chat.completions.create(model=MODEL, messages=CHAT, tools=[CLOCK, WEATHER], tool_choice=named)
    assert done.choices[0].message.tool_calls is not None
    (call,) = done.choices[0].message.tool_calls
    assert call.type == "function"
    assert call.function.name == "weather"
    _is_a_call("weather", call.function.arguments)


def test_a_streamed_call_is_the_whole_one_in_pieces(client: openai.OpenAI) -> None:
    name, arguments, reasons = "", "", []
    for chunk in client.chat.completions.create(
        model=MODEL, messages=CHAT, tools=[WEATHER], tool_choice="required", seed=3, stream=True
    ):
        reasons.append(chunk.choices[0].finish_reason)
        for piece in chunk.choices[0].delta.tool_calls or ():
            assert piece.index == 0
            assert piece.function is not None
            name += piece.function.name or ""
            arguments += piece.function.arguments or ""
    _is_a_call(name, arguments)
    assert reasons[-1] == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_is_kept(client: openai.OpenAI, stream: bool) -> None:
    wanted: Any = {
        "type": "json_schema",
        "json_schema": {"name": "point", "strict": True, "schema": Point.model_json_schema()},
    }
    asked: dict[str, Any] = {"model": MODEL, "messages": CHAT, "response_format": wanted, "seed": 5}
    if stream:
        chunks = client.chat.completions.create(**asked, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    else:
        done = client.chat.completions.create(**asked)
        assert done.choices[0].finish_reason == "stop"
        text = done.choices[0].message.content or ""
    Point.model_validate_json(text)


def test_the_package_parses_what_comes_back(client: openai.OpenAI) -> None:
    done = client.chat.completions.parse(model=MODEL, messages=CHAT, response_format=Point, seed=6)
    assert isinstance(done.choices[0].message.parsed, Point)


def test_any_json_object(client: openai.OpenAI) -> None:
    """Random text may be a long object: what is asked for is that it never stops being the beginning of one."""
    done = client.chat.completions.create(
        model=MODEL, messages=CHAT, response_format={"type": "json_object"}, seed=1, max_tokens=400
    )
    choice = done.choices[0]
    assert (choice.message.content or "").lstrip().startswith("{")
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content or ""), dict)


@pytest.mark.parametrize(
    ("outputs", "form"),
    [
        ({"regex": r"[0-9]{3}-[a-f]{2}"}, r"[0-9]{3}-[a-f]{2}"),
        ({"choice": ["yes", "no", "perhaps"]}, "yes|no|perhaps"),
        ({"grammar": 'start: "a" ("b" | "c") "d"'}, "a[bc]d"),
        ({"json": {"enum": ["x", "y"]}}, '"[xy]"'),
    ],
)
@pytest.mark.parametrize("seed", [1, 2])
def test_extra_bodys_structured_outputs(client: openai.OpenAI, outputs: Any, form: str, seed: int) -> None:
    extra = {"structured_outputs": outputs}
    chat = client.chat.completions.create(model=MODEL, messages=CHAT, seed=seed, extra_body=extra)
    assert re.fullmatch(form, (chat.choices[0].message.content or "").strip())
    assert chat.choices[0].finish_reason == "stop"
    text = client.completions.create(model=MODEL, prompt="hello", seed=seed, max_tokens=40, extra_body=extra)
    assert re.fullmatch(form, text.choices[0].text.strip())


@pytest.mark.parametrize(
    "outputs",
    [
        {"regex": "("},
        {"grammar": "this is no grammar"},
        {"json": {"type": "no such type"}},
        {"json": '{"not json'},
        {"choice": []},
        {"regex": "a", "choice": ["b"]},
        {},
        {"colour": "red"},
    ],
)
def test_what_is_no_grammar_is_a_bad_request(client: openai.OpenAI, outputs: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model=MODEL, messages=CHAT, max_tokens=4, extra_body={"structured_outputs": outputs}
        )
    assert (refused.value.param or "").startswith("structured_outputs")
    assert len(str(refused.value)) < 2000


def test_a_grammar_that_grows_too_large_ends_only_its_own_request(cell: HostedCell, client: openai.OpenAI) -> None:
    before = cell.pids()
    large = {"structured_outputs": {"regex": "a{1,100000}" * 50}}
    with pytest.raises(openai.APIStatusError) as ended:
        client.chat.completions.create(model=MODEL, messages=CHAT, max_tokens=50, extra_body=large)
    assert len(str(ended.value)) < 2000
    assert client.chat.completions.create(model=MODEL, messages=CHAT, max_tokens=3).choices
    assert cell.pids() == before


def _is_a_call(name: str, arguments: str) -> None:
    given = json.loads(arguments)
    if name == "clock":
        assert given == {}
        return
    assert name == "weather"
    assert set(given) == {"unit", "hours"}
    assert given["unit"] in ("C", "F")
    assert 0 <= given["hours"] <= 48
