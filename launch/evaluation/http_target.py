"""How is any server with the OpenAI API measured?

Over HTTP/1.1 streams of `/v1/completions`, one connection per request under way, kept open between requests. What the
server takes is tried once, with one short request per variant; the first one that is not refused is used, and what it
lacks becomes a note. A chunk's time is taken when its bytes arrive, before they are looked at.
"""

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec
from msgspec import Struct

from coordinator.config import is_loopback
from launch.evaluation.chunks import DONE, Lines, TokenCount, decode_chunk
from launch.evaluation.errors import amid_stream, code_and_text, refusal
from launch.evaluation.targets import Reply
from runtime.clock import Clock

_CONNECT_S = 10.0
_SILENCE_S = 600.0  # after which a stream has failed: what the default deadline of our own server is
_REFUSED = (400, 404, 405, 415, 422, 501)
_WORDS = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
    "problem",
    "hand",
    "part",
    "place",
    "case",
    "week",
    "company",
    "system",
    "program",
    "question",
    "work",
    "number",
    "night",
    "point",
    "home",
]
"""Common ones, which are one token each in most vocabularies."""


class ServerUnusable(Exception):
    """Nobody answers at this URL, or not as the OpenAI API does."""


class Variant(Struct, frozen=True, kw_only=True):
    """One form of a request."""

    ids: bool  # the prompt as token ids
    extensions: bool  # fields that vLLM, SGLang and we have beyond OpenAI's

    def notes(self) -> tuple[str, ...]:
        notes = []
        if not self.ids:
            notes.append("the server refuses token ids: prompts are text, about one word per token, as it counts them")
        if not self.extensions:
            notes.append("the server refuses ignore_eos: answers may be shorter than asked")
        return tuple(notes)


VARIANTS = tuple(Variant(ids=ids, extensions=extensions) for extensions in (True, False) for ids in (True, False))


class Served(Struct, frozen=True, kw_only=True):
    """What `/v1/models` says of a model."""

    id: str
    root: str | None = None
    max_model_len: int | None = None


class _Models(Struct, frozen=True):
    data: list[Served]


class HttpTarget:
    """Use it as `async with`; `connect` comes first."""

    def __init__(self, base: str, clock: Clock, api_key: str | None = None) -> None:
        self._base = base
        self._clock = clock
        self._variant = VARIANTS[0]
        self._model = ""
        self._corrected = 0
        self._answers = 0
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        host = urlsplit(base).hostname or ""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60.0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_SILENCE_S),
            headers={"Accept-Encoding": "identity", "Content-Type": "application/json", **headers},
            trust_env=not is_loopback(host),  # a proxy, where the user has one
        )

    async def __aenter__(self) -> "HttpTarget":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def models(self) -> list[Served]:
        """
        Raises:
            ServerUnusable: there is no list of models at this URL.
        """
        try:
            async with self._session.get(f"{self._base}/v1/models") as response:
                body = await response.read()
                if response.status in (401, 403):
                    raise ServerUnusable(f"{self._base} asks for another API key: {code_and_text(body)[1]}")
                if response.status != 200:
                    raise ServerUnusable(f"{self._base}/v1/models: HTTP {response.status}: {code_and_text(body)[1]}")
                served = msgspec.json.decode(body, type=_Models).data
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ServerUnusable(f"{self._base} does not answer: {_say(error)}") from error
        except msgspec.DecodeError as error:
            raise ServerUnusable(f"{self._base}/v1/models is not as the OpenAI API has it: {error}") from error
        if not served:
            raise ServerUnusable(f"{self._base} serves no model")
        return served

    async def connect(self, model: str, probe: Sequence[int], *, text_only: bool = False) -> None:
        """Find the form of requests that this server takes.

        Args:
            probe: a few token ids of its vocabulary.

        Raises:
            ServerUnusable: it takes none.
        """
        self._model = model
        why = ""
        for variant in VARIANTS:
            if variant.ids and text_only:
                continue
            self._variant = variant
            reply = Reply(sent_at=self._clock.now())
            status = await self._ask(self.encode("Once upon a time" if text_only else probe, 2), reply)
            if reply.error is None:
                self._answers = self._corrected = 0
                return
            why = reply.error
            if status not in _REFUSED:
                break
        raise ServerUnusable(f"{self._base} does not take completions: {why}")

    def encode(self, prompt: str | Sequence[int], output_tokens: int) -> bytes:
        if not isinstance(prompt, str):
            prompt = list(prompt) if self._variant.ids else " ".join(_WORDS[number % len(_WORDS)] for number in prompt)
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": prompt,
            "max_tokens": output_tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._variant.extensions:
            body |= {"ignore_eos": True, "min_tokens": output_tokens, "return_token_ids": True}
        return msgspec.json.encode(body)

    async def ask(self, request: bytes, reply: Reply) -> None:
        await self._ask(request, reply)

    async def _ask(self, request: bytes, reply: Reply) -> int | None:
        """Returns: the HTTP status; None if there was none."""
        reply.sent_at = self._clock.now()
        try:
            async with self._session.post(f"{self._base}/v1/completions", data=request) as response:
                if response.status != 200:
                    refused = refusal(response.status, await response.read())
                    reply.end(self._clock.now(), refused.error, rejected=refused.turned_away)
                else:
                    await self._stream(response.content, reply)
                return response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            reply.end(self._clock.now(), f"connection: {_say(error)}")
        except msgspec.DecodeError as error:
            reply.end(self._clock.now(), f"protocol: a chunk is not as the OpenAI API has it: {error}")
        return None

    async def _stream(self, content: aiohttp.StreamReader, reply: Reply) -> None:
        lines, count = Lines(), TokenCount()
        at = self._clock.now()
        done = False
        async for data in content.iter_any():
            at = self._clock.now()
            for payload in lines.feed(data):
                if payload == DONE:
                    done = True
                    continue
                chunk = decode_chunk(payload)
                if chunk.error is not None:
                    reply.end(at, amid_stream(payload))
                    return
                reply.token_at += [at] * count.add(chunk, at)
        if not (done or count.finished):
            reply.end(at, "incomplete: the stream broke off")
            return
        self._answers += 1
        corrected = count.corrected()
        if corrected is not None:
            self._corrected += 1
            reply.token_at = corrected
        if count.usage is not None:
            reply.prompt_tokens = count.usage.prompt_tokens
        reply.end(at)

    def notes(self) -> tuple[str, ...]:
        if not self._corrected:
            return self._variant.notes()
        return (
            *self._variant.notes(),
            f"{self._corrected} of {self._answers} answers came in chunks of unknown size: the tokens that their usage"
            " counts were spread over the chunks, so gaps between tokens are not exact",
        )


def _say(error: BaseException) -> str:
    return str(error) or type(error).__name__
