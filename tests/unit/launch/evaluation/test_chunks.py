"""Are the tokens of an HTTP stream counted by the rule in docs/metrics.md?"""

import json
from typing import Any

import pytest

from launch.evaluation.chunks import Lines, TokenCount, decode_chunk, spread


def chunk(usage: dict[str, int] | None = None, **choice: Any) -> bytes:
    return json.dumps({"choices": [choice] if choice else [], "usage": usage, "id": "x"}).encode()


def count(*chunks: bytes) -> tuple[TokenCount, list[int]]:
    counted = TokenCount()
    return counted, [counted.add(decode_chunk(payload), float(at)) for at, payload in enumerate(chunks)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_lines_are_found_however_the_bytes_are_cut(size: int) -> None:
    stream = b': keep-alive\n\ndata: {"a": 1}\n\ndata:two\r\n\r\nevent: x\ndata: [DONE]\n\n'
    lines = Lines()
    found = [line for at in range(0, len(stream), size) for line in lines.feed(stream[at : at + size])]
    assert found == [b'{"a": 1}', b"two", b"[DONE]"]


def test_token_ids_come_first() -> None:
    counted, tokens = count(chunk(text="a", token_ids=[1, 2]), chunk(text="", token_ids=[3]), chunk(text=""))
    assert tokens == [2, 1, 0]
    assert counted.corrected() is None


def test_then_the_running_usage() -> None:
    _, tokens = count(chunk({"completion_tokens": 1}, text="a"), chunk({"completion_tokens": 4}, text="bcd"))
    assert tokens == [1, 3]


def test_running_usage_knows_of_tokens_without_text() -> None:
    counted, tokens = count(
        chunk({"completion_tokens": 0}, text=""),
        chunk({"completion_tokens": 1}, text=""),
        chunk({"completion_tokens": 3}, text="a"),
        chunk({"completion_tokens": 4}, text="", finish_reason="stop"),
    )
    assert tokens == [0, 1, 2, 1]
    assert counted.corrected() is None


@pytest.mark.parametrize("last", ["", "d"])
@pytest.mark.parametrize("first", [None, {"completion_tokens": 0}])
def test_usage_on_the_last_chunk_is_that_of_all(first: dict[str, int] | None, last: str) -> None:
    """Its tokens came with the chunks before it, and not all at once at the end."""
    counted, tokens = count(
        chunk(first, text=""),
        chunk(text="a"),
        chunk(text="bc"),
        chunk({"completion_tokens": 6}, text=last, finish_reason="stop"),
    )
    assert tokens == [0, 1, 1, len(last)]
    assert counted.corrected() == ([1.0, 1.0, 2.0, 2.0, 3.0, 3.0] if last else [1.0, 1.0, 1.0, 2.0, 2.0, 2.0])


def test_then_log_probabilities_then_one_per_text() -> None:
    _, tokens = count(chunk(text="ab", logprobs={"tokens": ["a", "b"]}), chunk(text="c"), chunk(text=""))
    assert tokens == [2, 1, 0]


def test_a_chat_is_counted_like_a_completion() -> None:
    counted, tokens = count(
        chunk(delta={"role": "assistant", "content": ""}),
        chunk(delta={"content": "a"}),
        chunk(delta={"content": "bc"}, token_ids=[1, 2]),
        chunk(delta={}, finish_reason="stop"),
    )
    assert tokens == [0, 1, 2, 0]
    assert counted.finished


def test_the_usage_at_the_end_corrects_what_was_guessed() -> None:
    counted, tokens = count(chunk(text="a"), chunk(text="bc"), chunk({"prompt_tokens": 9, "completion_tokens": 5}))
    assert tokens == [1, 1, 0]
    assert counted.corrected() == [0.0, 0.0, 0.0, 1.0, 1.0]


def test_a_usage_that_agrees_corrects_nothing() -> None:
    counted, _ = count(chunk(text="a"), chunk(text="b", finish_reason="length"), chunk({"completion_tokens": 2}))
    assert counted.corrected() is None
    assert counted.finished


@pytest.mark.parametrize(("chunks", "tokens"), [(1, 1), (3, 1), (1, 5), (3, 2), (3, 3), (3, 4), (4, 9), (7, 100)])
def test_spreading_keeps_the_first_and_the_last_time(chunks: int, tokens: int) -> None:
    times = [float(at) for at in range(chunks)]
    at = spread(times, tokens)
    assert len(at) == tokens
    assert at == sorted(at)
    assert at[0] == times[0]
    assert at[-1] == (times[-1] if tokens > 1 else times[0])
