"""What does one request's client get to see of its tokens?

A `Stream` turns tokens into text as it becomes certain, watches for stop strings and remembers what was delivered. It
is pure apart from its detokeniser. The machine decides about tokens, the stream about text (ADR-0011).
"""

from dataclasses import dataclass
from typing import Protocol

from coordinator.detokenizer import Detokenizer
from coordinator.stop_strings import StopMatcher
from runtime.params import FinishReason, SamplingParams
from runtime.stages import Ledger
from runtime.tokens import SampledToken
from transport.messages.client import FailureCode


@dataclass(frozen=True, slots=True)
class StreamDelta:
    """Tokens from `index` on, and the text that became certain with them."""

    index: int
    tokens: tuple[SampledToken, ...]
    text: str


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """The good end of a request; `text` is what had been held back."""

    reason: FinishReason
    text: str
    prompt_tokens: int
    completion_tokens: int
    ledger: Ledger
    stop_reason: str | int | None


class Sink(Protocol):
    """Where a front wants the events of one request; called on the loop thread, in order, and never blocks."""

    def delta(self, delta: StreamDelta) -> None: ...

    def done(self, end: StreamEnd) -> None: ...

    def failed(self, code: FailureCode, message: str, param: str | None) -> None: ...


class Stream:
    """One request, as its front sees it."""

    def __init__(self, sink: Sink, detokenizer: Detokenizer, sampling: SamplingParams, prompt_tokens: int) -> None:
        self.sink = sink
        self._detokenizer = detokenizer
        self._matcher = StopMatcher(sampling.stop)
        self._sampling = sampling
        self._prompt_tokens = prompt_tokens
        self._delivered = 0
        self._last_token: int | None = None
        self._stop_string: str | None = None

    def push(self, index: int, tokens: tuple[SampledToken, ...]) -> bool:
        """Deliver tokens; True when their text contains a stop string, after which nothing more is delivered."""
        if self._stop_string is not None:
            return False
        if index != self._delivered:
            raise AssertionError(f"token {index} follows {self._delivered} delivered tokens")
        text = ""
        taken = 0
        for token in tokens:
            taken += 1
            self._last_token = token.token_id
            piece = self._detokenizer.push(token.token_id)
            if index + taken <= self._sampling.min_tokens:
                text += piece  # a stop string ends nothing before the fewest tokens that were asked for
                continue
            match = self._matcher.push(piece)
            text += match.text
            if match.stop is not None:
                self._stop_string = match.stop
                break
        self._delivered += taken
        self.sink.delta(StreamDelta(index, tokens[:taken], text))
        return self._stop_string is not None

    def finish(self, reason: FinishReason, ledger: Ledger) -> None:
        text = ""
        if self._stop_string is None:
            tail = self._matcher.push(self._detokenizer.flush())
            self._stop_string = tail.stop
            text = tail.text if tail.stop is not None else tail.text + self._matcher.flush()
        self.sink.done(
            StreamEnd(
                reason=FinishReason.STOP if self._stop_string is not None else reason,
                text=text,
                prompt_tokens=self._prompt_tokens,
                completion_tokens=self._delivered,
                ledger=ledger,
                stop_reason=self._stop_string if self._stop_string is not None else self._stop_token(reason),
            )
        )

    def fail(self, code: FailureCode, message: str) -> None:
        self.sink.failed(code, message, None)

    def _stop_token(self, reason: FinishReason) -> int | None:
        asked = self._last_token in self._sampling.stop_token_ids
        return self._last_token if reason is FinishReason.STOP and asked else None
