"""How does a test make an answer of an HTTP request, and what do its chunks look like on the wire?"""

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from coordinator.http import translate
from coordinator.http.answers import Answer, ChatAnswer, Head, TextAnswer
from coordinator.http.requests import ChatRequest, CompletionRequest
from coordinator.http.translate import AskLimits
from coordinator.streams import StreamDelta
from runtime.params import FinishReason
from tests.support.asgi import FrontText, events, prepared

HEAD = Head("id-1", 1700000000, "m")
LIMITS = AskLimits(8, 64)
STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH


def chat(template: str | None = None, **fields: Any) -> ChatAnswer:
    body = {"messages": [{"role": "user", "content": "hi"}], **fields}
    asked = translate.chat(msgspec.json.decode(json.dumps(body), type=ChatRequest), None, LIMITS)
    return ChatAnswer(HEAD, asked, [prepared()], FrontText(template))


def completion(prompts: Sequence[bytes] = (b"hi",), **fields: Any) -> TextAnswer:
    body = {"prompt": [prompt.decode() for prompt in prompts], **fields}
    asked = translate.completion(msgspec.json.decode(json.dumps(body), type=CompletionRequest), None, LIMITS)
    return TextAnswer(HEAD, asked, [prepared(prompt) for prompt in prompts], FrontText())


def streamed(answer: Answer, *deltas: tuple[int, StreamDelta]) -> list[Any]:
    return events(b"".join(answer.chunk(number, delta_) for number, delta_ in deltas))


def whole(answer: Answer, *deltas: tuple[int, StreamDelta]) -> Any:
    for number, delta_ in deltas:
        answer.collect(number, delta_)
    return json.loads(answer.whole())


def chat_chunk(delta_: dict[str, Any], index: int = 0, **entry: Any) -> dict[str, Any]:
    """As it stands on the wire."""
    return {
        "id": "id-1",
        "created": 1700000000,
        "model": "m",
        "choices": [{"index": index, "delta": delta_, "logprobs": None, "finish_reason": None, **entry}],
        "object": "chat.completion.chunk",
    }


def text_chunk(text: str, index: int = 0, **entry: Any) -> dict[str, Any]:
    return {
        "id": "id-1",
        "created": 1700000000,
        "model": "m",
        "choices": [{"index": index, "text": text, "logprobs": None, "finish_reason": None, **entry}],
        "object": "text_completion",
    }


ROLE = {"role": "assistant", "content": ""}
END: dict[str, Any] = {"finish_reason": "stop", "stop_reason": None}
