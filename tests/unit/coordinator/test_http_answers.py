"""The chunks of a stream of plain text are made in a cheaper way than all others: do they look the same?"""

import msgspec
import pytest

from coordinator.http.answers import ChatAnswer, Head
from coordinator.http.translate import Asked
from coordinator.service import Prepared
from coordinator.streams import Finished, StreamDelta
from coordinator.text import ByteText
from runtime.params import FinishReason, SamplingParams
from runtime.tokens import SampledToken
from transport.messages.client import GenerateRequest

REQUEST = GenerateRequest(prompt="a")
PREPARED = [Prepared(REQUEST, (97,), SamplingParams())]


def answer(n: int = 1, *, continuous_usage: bool = False) -> ChatAnswer:
    asked = Asked(
        (REQUEST,),
        n=n,
        stream=True,
        include_usage=False,
        continuous_usage=continuous_usage,
        return_token_ids=False,
        echo=False,
        logprobs=False,
    )
    return ChatAnswer(Head("chatcmpl-1", 5, 'a "model"'), asked, PREPARED, ByteText())


def delta(index: int, text: str, *, last: bool = False) -> StreamDelta:
    finish = Finished(FinishReason.LENGTH, None) if last else None
    return StreamDelta(index, (SampledToken(98, None),), text, finish)


def bodies(events: bytes) -> list[dict[str, object]]:
    assert events.endswith(b"\n\n")
    return [msgspec.json.decode(event.removeprefix(b"data: ")) for event in events.split(b"\n\n")[:-1]]


@pytest.mark.parametrize("text", ["b", "", 'quote " and \\ and \n', "\u00e9\u4e16\U0001f600", "\u2028"])
def test_a_chunk_in_the_middle_is_the_one_that_carries_usage_without_it(text: str) -> None:
    cheap, full = answer(2), answer(2, continuous_usage=True)
    for number in (1, 0):
        cheap.chunk(number, delta(0, "b"))
        full.chunk(number, delta(0, "b"))
        (short,), (long,) = (bodies(one.chunk(number, delta(1, text))) for one in (cheap, full))
        assert "usage" in long
        del long["usage"]
        assert short == long


def test_the_first_chunk_has_the_role_and_the_last_one_the_reason() -> None:
    one = answer()
    role, first = bodies(one.chunk(0, delta(0, "b")))
    assert role["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    ]
    assert first["choices"] == [{"index": 0, "delta": {"content": "b"}, "logprobs": None, "finish_reason": None}]
    (last,) = bodies(one.chunk(0, delta(1, "c", last=True)))
    assert last["choices"] == [
        {"index": 0, "delta": {"content": "c"}, "logprobs": None, "finish_reason": "length", "stop_reason": None}
    ]
    assert one.books.usage().completion_tokens == 2
