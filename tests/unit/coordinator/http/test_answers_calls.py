"""Do calls of functions reach the client whole, and does a stream say what the whole answer says?"""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.streams import Finished, StreamDelta
from runtime.params import FinishReason
from tests.support.answers import END, LENGTH, ROLE, STOP, chat, chat_chunk, completion, streamed, whole
from tests.support.asgi import delta, sampled

TAGGED = "{{ tools }} <tool_call>"
CALL = '<tool_call>{"name":"f","arguments":{"x":1}}</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "f"}}]


def letters(text: str, finish: FinishReason | None = STOP) -> list[tuple[int, StreamDelta]]:
    """One token per letter, all of choice 0."""
    last = len(text) - 1
    return [(0, delta(index, letter, finish if index == last else None)) for index, letter in enumerate(text)]


def test_a_streamed_call_comes_in_one_piece_with_a_name_and_an_id() -> None:
    answer = chat(TAGGED, stream=True, tools=TOOLS)
    role, text, call, end = streamed(answer, *letters(f"I{CALL}\n"))
    assert role == chat_chunk(ROLE)
    assert text == chat_chunk({"content": "I"})
    (item,) = call["choices"][0]["delta"].pop("tool_calls")
    assert item.pop("id").startswith("call_")
    assert item == {"index": 0, "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}
    assert call["choices"][0]["finish_reason"] is None
    assert end == chat_chunk({"content": "\n"}, finish_reason="tool_calls", stop_reason=None)


def test_a_call_that_the_last_token_completes_ends_the_stream() -> None:
    *_, end = streamed(chat(TAGGED, stream=True, tools=TOOLS), *letters(CALL))
    assert end["choices"][0]["finish_reason"] == "tool_calls"
    assert end["choices"][0]["delta"]["tool_calls"][0]["function"]["name"] == "f"


def test_several_calls_are_numbered_through() -> None:
    answer = chat(TAGGED, stream=True, tools=TOOLS)
    chunks = streamed(answer, *letters(CALL + CALL + CALL))
    items = [item for chunk in chunks for item in chunk["choices"][0]["delta"].get("tool_calls", ())]
    assert [item["index"] for item in items] == [0, 1, 2]
    assert len({item["id"] for item in items}) == 3
    gathered = streamed(chat(TAGGED, stream=True, tools=TOOLS), (0, delta(0, CALL + CALL, STOP)))
    assert [item["index"] for item in gathered[-1]["choices"][0]["delta"]["tool_calls"]] == [0, 1]


@pytest.mark.parametrize("cut", [True, False])
def test_without_parallel_calls_only_the_first_counts(cut: bool) -> None:
    said = CALL + "x" + CALL + CALL
    deltas = letters(said) if cut else [(0, delta(0, said, STOP))]
    chunks = streamed(chat(TAGGED, stream=True, tools=TOOLS, parallel_tool_calls=False), *deltas)
    items = [item for chunk in chunks for item in chunk["choices"][0]["delta"].get("tool_calls", ())]
    assert [item["index"] for item in items] == [0]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    message = whole(chat(TAGGED, tools=TOOLS, parallel_tool_calls=False), *deltas)["choices"][0]["message"]
    assert len(message["tool_calls"]) == 1
    assert message["content"] == "x"


def test_a_whole_answer_that_is_a_call_has_no_content() -> None:
    (choice,) = whole(chat(TAGGED, tools=TOOLS), *letters(CALL))["choices"]
    (call,) = choice["message"].pop("tool_calls")
    assert call.pop("id").startswith("call_")
    assert call == {"type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}
    assert choice["message"] == {"role": "assistant", "content": None, "refusal": None}
    assert choice["finish_reason"] == "tool_calls"


def test_without_tools_nothing_is_a_call() -> None:
    for fields in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        (choice,) = whole(chat(TAGGED, **fields), *letters(CALL))["choices"]
        assert choice["message"]["content"] == CALL
        assert choice["finish_reason"] == "stop"


def test_a_required_call_is_json_whatever_the_template_says() -> None:
    answer = chat(TAGGED, tools=TOOLS, tool_choice="required")
    (choice,) = whole(answer, *letters('{"name": "f", "arguments": {}}'))["choices"]
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}


def test_text_that_was_held_back_comes_with_the_end() -> None:
    *_, end = streamed(chat(TAGGED, stream=True, tools=TOOLS), *letters("a<tool"))
    assert end == chat_chunk({"content": "<tool"}, **END)


def test_an_end_with_nothing_to_say_is_an_empty_delta() -> None:
    answer = chat(TAGGED, stream=True, tools=TOOLS)
    *_, end = streamed(answer, (0, delta(0, CALL)), (0, StreamDelta(60, (sampled(4),), "", Finished(STOP, 4))))
    assert end == chat_chunk({}, finish_reason="tool_calls", stop_reason=4)


def test_tokens_that_were_held_back_are_told_with_the_chunk_that_follows() -> None:
    answer = chat(TAGGED, stream=True, tools=TOOLS, return_token_ids=True, logprobs=True)
    said = f"a{CALL}b"
    deltas = [
        (0, delta(index, letter, STOP if index == len(said) - 1 else None, logprob=True))
        for index, letter in enumerate(said)
    ]
    _, text, call, end = (chunk["choices"][0] for chunk in streamed(answer, *deltas))
    assert [chunk["token_ids"] for chunk in (text, call, end)] == [[97], list(CALL.encode()), [98]]
    assert [len(chunk["logprobs"]["content"]) for chunk in (text, call, end)] == [1, len(CALL), 1]


# --- a stream says what the whole answer says ------------------------------------------------------------------------


_SAID = st.lists(
    st.sampled_from([CALL, "<tool_call>", "</tool_call>", "<", '{"name":"f","arguments":{}}', "a", "bc", " "]),
    min_size=1,
    max_size=6,
)


def _deltas(texts: list[str], cuts: list[int], finish: FinishReason) -> list[tuple[int, StreamDelta]]:
    """The answers `texts` of as many choices, in pieces of these lengths, turn by turn."""
    made: list[tuple[int, StreamDelta]] = []
    shown = [0] * len(texts)
    turn = 0
    while any(done < len(text) for done, text in zip(shown, texts, strict=True)):
        number = turn % len(texts)
        length = cuts[turn % len(cuts)]
        turn += 1
        text, start = texts[number], shown[number]
        if start == len(text):
            continue
        shown[number] = min(len(text), start + length)
        piece = text[start : shown[number]]
        made.append((number, delta(start, piece, finish if shown[number] == len(text) else None, logprob=True)))
    return made


def _joined(chunks: list[Any]) -> dict[int, dict[str, Any]]:
    """What a client makes of a stream: one entry per choice."""
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        (entry,) = chunk["choices"]
        choice = choices.setdefault(entry["index"], {"text": "", "calls": [], "ids": [], "logprobs": [], "ends": []})
        said = entry.get("delta", entry)
        choice["text"] += said.get("content", said.get("text", ""))
        choice["calls"] += [call["function"] for call in said.get("tool_calls", ())]
        choice["ids"] += entry.get("token_ids", ())
        choice["logprobs"] += _logprobs(entry["logprobs"])
        choice["ends"] += [entry["finish_reason"]] if entry["finish_reason"] else []
    return choices


def _logprobs(logprobs: Any) -> list[Any]:
    if logprobs is None:
        return []
    if "content" in logprobs:
        return list(logprobs["content"])
    return list(zip(*(logprobs[key] for key in ("tokens", "token_logprobs", "text_offset")), strict=True))


def _whole_entry(entry: dict[str, Any]) -> dict[str, Any]:
    message = entry.get("message", {})
    return {
        "text": entry["text"] if "text" in entry else message["content"] or "",
        "calls": [call["function"] for call in message.get("tool_calls", ())],
        "ids": entry["token_ids"],
        "logprobs": _logprobs(entry["logprobs"]),
        "ends": [entry["finish_reason"]],
    }


@given(
    st.lists(_SAID.map("".join), min_size=1, max_size=3),
    st.lists(st.integers(min_value=1, max_value=30), min_size=1, max_size=5),
    st.sampled_from([STOP, LENGTH]),
    st.sampled_from(
        [{}, {"tools": TOOLS}, {"tools": TOOLS, "parallel_tool_calls": False}, {"tools": TOOLS, "tool_choice": "none"}]
    ),
    st.sampled_from([None, TAGGED]),
)
def test_a_streamed_chat_is_the_whole_chat(
    texts: list[str], cuts: list[int], finish: FinishReason, tools: dict[str, Any], template: str | None
) -> None:
    fields = {"n": len(texts), "logprobs": True, "return_token_ids": True, **tools}
    deltas = _deltas(texts, cuts, finish)
    stream = chat(template, stream=True, **fields)
    chunks = streamed(stream, *deltas)
    complete = whole(chat(template, **fields), *deltas)
    assert _joined(chunks) == {entry["index"]: _whole_entry(entry) for entry in complete["choices"]}
    roles = [chunk["choices"][0]["index"] for chunk in chunks if "role" in chunk["choices"][0]["delta"]]
    assert sorted(roles) == list(range(len(texts)))
    usage = json.loads(stream.usage_chunk().removeprefix(b"data: "))["usage"]
    assert usage == complete["usage"]
    assert usage["completion_tokens"] == sum(map(len, texts))


@given(
    st.lists(st.text(alphabet="ab <{", min_size=1, max_size=12), min_size=1, max_size=3),
    st.lists(st.integers(min_value=1, max_value=5), min_size=1, max_size=5),
    st.sampled_from([{"echo": True}, {"logprobs": 1}, {}]),
)
def test_a_streamed_completion_is_the_whole_completion(
    texts: list[str], cuts: list[int], asked: dict[str, Any]
) -> None:
    fields = {"n": len(texts), "return_token_ids": True, **asked}
    deltas = _deltas(texts, cuts, STOP)
    chunks = streamed(completion(stream=True, **fields), *deltas)
    assert len(chunks) == len(deltas), "one chunk per delta"
    complete = whole(completion(**fields), *deltas)
    assert _joined(chunks) == {entry["index"]: _whole_entry(entry) for entry in complete["choices"]}
