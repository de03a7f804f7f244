"""How many tokens arrived with each chunk of an HTTP stream?

Pure. A chunk is a `data:` line of a stream of server-sent events, in the form of the OpenAI API, of a completion or of
a chat. The rule, from sure to less sure: its token ids, the growth of its running usage, its log-probabilities, else
one token if it has text. Usage is running if every chunk so far that brought text had one: some servers put the sum on
their last chunk, whose tokens came long before. Where the usage at the end says another number, the tokens are spread
evenly over the chunks with text, the first of them at the first chunk and the last of them at the last; TTFT and E2E
stay what they were. A single token came with the first.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct


class _Logprobs(Struct, frozen=True):
    tokens: list[str] | None = None


class _Delta(Struct, frozen=True):
    content: str | None = None


class _Choice(Struct, frozen=True):
    text: str | None = None  # of a completion
    delta: _Delta | None = None  # of a chat
    token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None

    @property
    def shown(self) -> str | None:
        return self.delta.content if self.delta is not None else self.text


class Usage(Struct, frozen=True):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Chunk(Struct, frozen=True):
    id: Any = None  # of the answer
    choices: list[_Choice] = []
    usage: Usage | None = None
    error: Any = None


class Lines:
    """Cuts bytes into the payloads of `data:` lines, however they are packed."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]


_decoder = msgspec.json.Decoder(Chunk)
DONE = b"[DONE]"


def decode_chunk(payload: bytes) -> Chunk:
    """
    Raises:
        msgspec.DecodeError: it is not JSON of this form.
    """
    return _decoder.decode(payload)


class TokenCount:
    """Of one stream."""

    def __init__(self) -> None:
        self._content_at: list[float] = []  # of chunks with text or tokens
        self._counted = 0
        self._running: bool | None = None  # whether usage is; None: no chunk with text has said
        self.finished = False  # a finish reason has come
        self.usage: Usage | None = None

    def add(self, chunk: Chunk, at: float) -> int:
        """Tokens that came with it."""
        if chunk.usage is not None:
            self.usage = chunk.usage
        if not chunk.choices:
            return 0
        choice = chunk.choices[0]
        self.finished |= choice.finish_reason is not None
        tokens = self._tokens(choice, chunk.usage)
        if tokens or choice.shown:
            self._content_at.append(at)
        self._counted += tokens
        return tokens

    def _tokens(self, choice: _Choice, usage: Usage | None) -> int:
        if choice.token_ids is not None:
            return len(choice.token_ids)
        told = usage.completion_tokens if usage is not None else None
        if choice.shown or (told and choice.finish_reason is None):
            self._running = told is not None and self._running is not False
        if self._running and told is not None:
            return max(told - self._counted, 0)
        if choice.logprobs is not None and choice.logprobs.tokens is not None:
            return len(choice.logprobs.tokens)
        return 1 if choice.shown else 0

    def corrected(self) -> list[float] | None:
        """At the end: when each token arrived, by the server's own count; None where ours agrees with it."""
        told = self.usage.completion_tokens if self.usage is not None else None
        if told is None or told == self._counted or not self._content_at:
            return None
        return spread(self._content_at, told)


def spread(chunks_at: Sequence[float], tokens: int) -> list[float]:
    """`tokens` over these chunks, the first in the first of them and the last of several in the last."""
    if tokens == 1:
        return [chunks_at[0]]
    return [chunks_at[token * len(chunks_at) // tokens] for token in range(tokens - 1)] + [chunks_at[-1]] * (tokens > 0)
