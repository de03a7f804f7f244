"""Are the chunks of a stream and the whole answer what clients and benchmark tools expect, byte by byte?"""

import json
from typing import Any

import pytest

from coordinator.streams import Finished, StreamDelta
from tests.support.answers import END, LENGTH, ROLE, STOP, chat, chat_chunk, completion, streamed, text_chunk, whole
from tests.support.asgi import delta, events, sampled

# --- streams of a chat -----------------------------------------------------------------------------------------------


def test_a_chat_in_bytes() -> None:
    answer = chat(stream=True)
    start = b'data: {"id":"id-1","created":1700000000,"model":"m","choices":[{"index":0,"delta":'
    end = b'}],"object":"chat.completion.chunk"}\n\n'
    assert answer.chunk(0, delta(0, "a")) == (
        start + b'{"role":"assistant","content":""},"logprobs":null,"finish_reason":null' + end
    ) + (start + b'{"content":"a"},"logprobs":null,"finish_reason":null' + end)
    assert answer.chunk(0, delta(1, "b")) == start + b'{"content":"b"},"logprobs":null,"finish_reason":null' + end
    assert not answer.books.finished
    assert answer.chunk(0, delta(2, "c", STOP)) == (
        start + b'{"content":"c"},"logprobs":null,"finish_reason":"stop","stop_reason":null' + end
    )
    assert answer.books.finished


def test_an_answer_of_one_token_has_its_role_its_text_and_its_end() -> None:
    assert streamed(chat(stream=True), (0, delta(0, "a", LENGTH))) == [
        chat_chunk(ROLE),
        chat_chunk({"content": "a"}, finish_reason="length", stop_reason=None),
    ]


def test_a_token_without_text_has_a_chunk_too() -> None:
    half = StreamDelta(0, (sampled(0xC3),), "")
    end = StreamDelta(1, (sampled(0xA9),), "é", Finished(STOP, None))
    assert streamed(chat(stream=True), (0, half), (0, end)) == [
        chat_chunk(ROLE),
        chat_chunk({"content": ""}),
        chat_chunk({"content": "é"}, **END),
    ]


@pytest.mark.parametrize("stop", ["###", 7, None])
def test_the_last_chunk_says_what_stopped_it(stop: str | int | None) -> None:
    *_, last = streamed(chat(stream=True), (0, delta(0, "a", STOP, stop=stop)))
    assert (last["choices"][0]["finish_reason"], last["choices"][0]["stop_reason"]) == ("stop", stop)


def test_deltas_that_gathered_make_one_chunk() -> None:
    assert streamed(chat(stream=True), (0, delta(0, "abc")), (0, delta(3, "d", STOP))) == [
        chat_chunk(ROLE),
        chat_chunk({"content": "abc"}),
        chat_chunk({"content": "d"}, **END),
    ]


def test_choices_that_alternate_have_a_role_each_and_an_end_each() -> None:
    answer = chat(stream=True, n=2)
    assert streamed(answer, (1, delta(0, "x")), (0, delta(0, "a")), (1, delta(1, "y", LENGTH))) == [
        chat_chunk(ROLE, 1),
        chat_chunk({"content": "x"}, 1),
        chat_chunk(ROLE, 0),
        chat_chunk({"content": "a"}, 0),
        chat_chunk({"content": "y"}, 1, finish_reason="length", stop_reason=None),
    ]
    assert not answer.books.finished
    assert streamed(answer, (0, delta(1, "b", STOP))) == [chat_chunk({"content": "b"}, 0, **END)]
    assert answer.books.finished


def test_usage_comes_alone_at_the_end_and_counts_the_prompt_once() -> None:
    answer = chat(stream=True, n=2, stream_options={"include_usage": True})
    chunks = streamed(answer, (0, delta(0, "abc", STOP)), (1, delta(0, "x", STOP)))
    assert all("usage" not in chunk for chunk in chunks)
    usage = {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6}
    assert events(answer.usage_chunk()) == [{**chat_chunk({}), "choices": [], "usage": usage}]


def test_running_usage_stands_on_every_chunk_and_is_of_its_choice() -> None:
    answer = chat(stream=True, n=2, stream_options={"continuous_usage_stats": True})
    chunks = streamed(answer, (0, delta(0, "ab")), (1, delta(0, "x")), (0, delta(2, "c", STOP)))
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [2, 2, 1, 1, 3]
    assert all(chunk["usage"]["prompt_tokens"] == 2 for chunk in chunks)
    assert [chunk["usage"]["total_tokens"] for chunk in chunks] == [4, 4, 3, 3, 5]


def test_log_probabilities_of_a_chat() -> None:
    answer = chat(stream=True, logprobs=True, top_logprobs=2)
    token = StreamDelta(0, (sampled(ord("a"), -0.25, [(ord("a"), -0.25), (0xC3, -1.5)]),), "a")
    role, first = streamed(answer, (0, token))
    assert role["choices"][0]["logprobs"] is None
    assert first["choices"][0]["logprobs"] == {
        "content": [
            {
                "token": "a",
                "logprob": -0.25,
                "bytes": [97],
                "top_logprobs": [
                    {"token": "a", "logprob": -0.25, "bytes": [97]},
                    {"token": "\ufffd", "logprob": -1.5, "bytes": [0xC3]},
                ],
            }
        ]
    }


def test_log_probabilities_that_were_asked_for_and_not_made_are_a_broken_invariant() -> None:
    with pytest.raises(AssertionError):
        chat(stream=True, logprobs=True).chunk(0, delta(0, "a"))


def test_token_ids_stand_with_their_tokens() -> None:
    role, first, last = streamed(
        chat(stream=True, return_token_ids=True), (0, delta(0, "ab")), (0, delta(2, "c", STOP))
    )
    assert "token_ids" not in role["choices"][0]
    assert first["choices"][0]["token_ids"] == [97, 98]
    assert last["choices"][0]["token_ids"] == [99]


# --- streams of a completion -----------------------------------------------------------------------------------------


def test_a_completion_in_bytes() -> None:
    answer = completion(stream=True)
    start = b'data: {"id":"id-1","created":1700000000,"model":"m","choices":[{"index":0,"text":'
    end = b'}],"object":"text_completion"}\n\n'
    assert answer.chunk(0, delta(0, "a")) == start + b'"a","logprobs":null,"finish_reason":null' + end
    assert answer.chunk(0, delta(1, "b", LENGTH)) == (
        start + b'"b","logprobs":null,"finish_reason":"length","stop_reason":null' + end
    )


def test_prompts_times_n_choices_count_each_prompt_once() -> None:
    answer = completion([b"hi", b"you"], stream=True, n=2, echo=True)
    chunks = streamed(answer, *((number, delta(0, "x", STOP)) for number in (3, 0, 2, 1)))
    assert chunks == [
        text_chunk("youx", 3, **END),
        text_chunk("hix", 0, **END),
        text_chunk("youx", 2, **END),
        text_chunk("hix", 1, **END),
    ]
    usage = {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
    assert events(answer.usage_chunk()) == [{**text_chunk(""), "choices": [], "usage": usage}]


def test_a_prompt_is_echoed_once_with_the_first_token() -> None:
    assert streamed(completion(stream=True, echo=True), (0, delta(0, "a")), (0, delta(1, "b", STOP))) == [
        text_chunk("hia"),
        text_chunk("b", **END),
    ]


def test_running_usage_of_a_completion() -> None:
    answer = completion([b"hi", b"you"], stream=True, stream_options={"continuous_usage_stats": True})
    chunks = streamed(answer, (0, delta(0, "a")), (1, delta(0, "bc")), (0, delta(1, "d")))
    assert [chunk["usage"] for chunk in chunks] == [
        {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3},
        {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
        {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4},
    ]


def test_log_probabilities_of_a_completion_and_where_its_tokens_begin() -> None:
    answer = completion(stream=True, logprobs=1)
    first = StreamDelta(0, (sampled(97, -0.5, [(98, -0.25)]), sampled(98, -1.0, [(98, -1.0)])), "ab")
    second = StreamDelta(2, (sampled(99, -2.0, [(99, -2.0)]),), "c", Finished(STOP, None))
    chunks = streamed(answer, (0, first), (0, second))
    assert [chunk["choices"][0]["logprobs"] for chunk in chunks] == [
        {
            "tokens": ["a", "b"],
            "token_logprobs": [-0.5, -1.0],
            "top_logprobs": [{"b": -0.25}, {"b": -1.0}],
            "text_offset": [0, 1],
        },
        {"tokens": ["c"], "token_logprobs": [-2.0], "top_logprobs": [{"c": -2.0}], "text_offset": [2]},
    ]


def test_offsets_of_one_choice_do_not_move_those_of_another() -> None:
    answer = completion(stream=True, n=2, logprobs=0)
    chunks = streamed(
        answer, *((number, delta(index, "a", logprob=True)) for number, index in [(0, 0), (1, 0), (0, 1), (1, 1)])
    )
    assert [chunk["choices"][0]["logprobs"]["text_offset"] for chunk in chunks] == [[0], [0], [1], [1]]


# --- whole answers ---------------------------------------------------------------------------------------------------


def test_a_whole_chat() -> None:
    answer = chat(n=2, return_token_ids=True)
    said = whole(answer, (1, delta(0, "x", LENGTH)), (0, delta(0, "a")), (0, delta(1, "b", STOP, stop="#")))

    def choice(index: int, text: str, reason: str, stop: str | None) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "finish_reason": reason,
            "stop_reason": stop,
            "logprobs": None,
            "token_ids": list(text.encode()),
        }

    assert said == {
        "id": "id-1",
        "created": 1700000000,
        "model": "m",
        "object": "chat.completion",
        "choices": [choice(0, "ab", "stop", "#"), choice(1, "x", "length", None)],
        "usage": {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5},
        "prompt_token_ids": [104, 105],
    }


def test_a_whole_completion() -> None:
    answer = completion([b"hi", b"you"], echo=True, return_token_ids=True)
    said = whole(answer, (1, delta(0, "x", LENGTH)), (0, delta(0, "a")), (0, delta(1, "b", STOP, stop=7)))
    assert said == {
        "id": "id-1",
        "created": 1700000000,
        "model": "m",
        "object": "text_completion",
        "choices": [
            {
                "index": 0,
                "text": "hiab",
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": 7,
                "token_ids": [97, 98],
                "prompt_token_ids": [104, 105],
            },
            {
                "index": 1,
                "text": "youx",
                "logprobs": None,
                "finish_reason": "length",
                "stop_reason": None,
                "token_ids": [120],
                "prompt_token_ids": [121, 111, 117],
            },
        ],
        "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
    }


def test_token_ids_are_there_only_if_asked_for() -> None:
    for answer in (chat(), completion()):
        assert "token_ids" not in json.dumps(whole(answer, (0, delta(0, "a", STOP))))


def test_a_whole_answer_before_its_end_is_a_broken_invariant() -> None:
    for answer in (chat(n=2), completion(n=2)):
        answer.collect(0, delta(0, "a", STOP))
        assert not answer.books.finished
        with pytest.raises(AssertionError):
            answer.whole()
