"""How does a test ask the HTTP front without a socket, and read what comes back?"""

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from starlette.types import ASGIApp, Message, Scope

from coordinator.service import Prepared, Service
from coordinator.streams import Finished, Sink, StreamDelta
from coordinator.text import ByteText
from runtime.params import FinishReason, SamplingParams
from runtime.tokens import SampledToken, TokenLogprobs
from tests.support.configs import coordinator_config
from transport.messages.client import FailureCode, GenerateRequest

CONFIG = coordinator_config()


class FrontText(ByteText):
    """A token is a byte; the chat template is what a test says it is."""

    def __init__(self, chat_template: str | None = None) -> None:
        self._template = chat_template

    @property
    def chat_template(self) -> str | None:  # type: ignore[override]  # a constant there
        return self._template

    def token_bytes(self, token_id: int) -> bytes:
        return bytes((token_id,))


@dataclass
class FakeService:
    """Starts whatever it is asked to, and lets the test say what happens to it."""

    started: list[Prepared] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    sinks: list[Sink] = field(default_factory=list)
    room: int = 1000  # requests that fit into the queue

    def start(self, prepared: Prepared, sink: Sink) -> int:
        self.started.append(prepared)
        self.sinks.append(sink)
        if len(self.started) > self.room:
            sink.failed("overloaded", "the queue is full", None)
        return 100 + len(self.started) - 1

    def cancel(self, request_id: int) -> None:
        self.cancelled.append(request_id)

    def say(self, choice: int, delta_: StreamDelta) -> None:
        self.sinks[choice].delta(delta_)

    def fail(self, choice: int, code: FailureCode) -> None:
        self.sinks[choice].failed(code, f"it is {code}", None)

    def as_service(self) -> Service:
        return cast(Service, self)


def sampled(token_id: int, logprob: float | None = None, top: Sequence[tuple[int, float]] = ()) -> SampledToken:
    return SampledToken(token_id, None if logprob is None else TokenLogprobs(logprob, tuple(top)))


def delta(
    index: int, text: str, finish: FinishReason | None = None, *, stop: str | int | None = None, logprob: bool = False
) -> StreamDelta:
    """One token per byte of `text`."""
    tokens = tuple(sampled(byte, -0.5 if logprob else None) for byte in text.encode())
    return StreamDelta(index, tokens, text, None if finish is None else Finished(finish, stop))


def prepared(prompt: bytes = b"hi", seed: int | None = None) -> Prepared:
    sampling = SamplingParams(max_tokens=8, seed=seed)
    return Prepared(GenerateRequest(prompt=prompt.decode(), sampling=sampling), tuple(prompt), sampling)


def events(data: bytes) -> list[Any]:
    """The server-sent events of a stream: objects, `[DONE]` as text, comments as text with their colon."""
    assert data == b"" or data.endswith(b"\n\n")
    blocks = data.decode().split("\n\n")[:-1]
    assert all(block and "\n" not in block for block in blocks), "an event is one line"
    return [_event(block) for block in blocks]


def _event(block: str) -> Any:
    if block.startswith(":"):
        return block
    assert block.startswith("data: ")
    said = block.removeprefix("data: ")
    return said if said == "[DONE]" else json.loads(said)


@dataclass
class Answer:
    """What an application has sent."""

    messages: list[Message]
    scope: Scope

    @property
    def status(self) -> int:
        assert self.messages, "nothing was sent"
        assert [m["type"] for m in self.messages].count("http.response.start") == 1
        return int(self.messages[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.messages[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages[1:])

    @property
    def complete(self) -> bool:
        return bool(self.messages) and not self.messages[-1].get("more_body", False)

    def error(self) -> dict[str, Any]:
        """Its error, after a look at its form."""
        assert len(self.body) < 4096
        assert self.headers["content-type"] == "application/json"
        assert self.headers["content-length"] == str(len(self.body))
        (key, error), *others = json.loads(self.body).items()
        assert (key, others) == ("error", [])
        assert error.keys() == {"message", "type", "param", "code"}
        return cast(dict[str, Any], error)


class Client:
    """The other end of one ASGI request: `body` comes in these pieces, and `send` waits while `reads` is not set."""

    def __init__(
        self,
        method: str = "POST",
        path: str = "/",
        body: Iterable[bytes] = (b"",),
        headers: Iterable[tuple[bytes, bytes]] = (),
        *,
        ends_body: bool = True,
    ) -> None:
        self.gone = asyncio.Event()
        self.reads = asyncio.Event()
        self.reads.set()
        self.aborted = False
        self.scope: Scope = {
            "type": "http",
            "method": method,
            "path": path,
            "headers": list(headers),
            "query_string": b"",
            "state": {"abort": self._abort},
        }
        self.answer = Answer([], self.scope)
        self._body = list(body)
        self._ends_body = ends_body

    async def receive(self) -> Message:
        if self._body:
            piece = self._body.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(self._body) or not self._ends_body}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await self.reads.wait()
        self.answer.messages.append(message)

    async def ask(self, app: ASGIApp) -> Answer:
        await app(self.scope, self.receive, self.send)
        return self.answer

    def _abort(self) -> None:
        self.aborted = True
        self.gone.set()
        self.reads.set()


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)
