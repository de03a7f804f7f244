"""What does one request's client get to see of its tokens?

A `Stream` turns tokens into text as it becomes certain, watches for stop strings and remembers what was delivered. It
is pure apart from its detokeniser. The machine decides about tokens, the stream about text (ADR-0011).
"""

from dataclasses import dataclass
from typing import Protocol

from coordinator.detokenizer import Detokenizer
from coordinator.ledger import Moments
from coordinator.stop_strings import StopMatcher
from runtime.params import FinishReason, SamplingParams
from runtime.stages import Ledger
from runtime.tokens import SampledToken
from transport.messages.client import FailureCode


@dataclass(frozen=True, slots=True)
class StreamDelta:
    """Tokens from `index` on, and the text that became certain with them.

    With the last token of a good end comes `finish`: nothing is held back any more, and only the `StreamEnd` with the
    numbers of the workers follows. A request that is cancelled or fails has no such delta.
    """

    index: int
    tokens: tuple[SampledToken, ...]
    text: str
    finish: "Finished | None" = None


@dataclass(frozen=True, slots=True)
class Finished:
    """Why an answer is complete; `stop_reason` is the stop string or the stop token that was asked for."""

    reason: FinishReason
    stop_reason: str | int | None


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

    @property
    def moments(self) -> Moments:
        """Where the front notes when it passes tokens on."""
        ...

    def delta(self, delta: StreamDelta) -> None: ...

    def done(self, end: StreamEnd) -> None: ...

    def failed(self, code: FailureCode, message: str, param: str | None) -> None: ...


class Stream:
    """One request, as its front sees it."""

    def __init__(
        self,
        sink: Sink,
        detokenizer: Detokenizer,
        sampling: SamplingParams,
        prompt_tokens: int,
        *,
        include_stop_string: bool = False,
    ) -> None:
        self.sink = sink
        self._include_stop_string = include_stop_string
        self._detokenizer = detokenizer
        self._matcher = StopMatcher(sampling.stop)
        self._sampling = sampling
        self._prompt_tokens = prompt_tokens
        self._delivered = 0
        self._last_token: int | None = None
        self._stop_string: str | None = None
        self._flushed = False

    def push(self, index: int, tokens: tuple[SampledToken, ...], finish: FinishReason | None = None) -> bool:
        """Deliver tokens; True when their text contains a stop string, after which nothing more is delivered.

        Args:
            finish: why the last of `tokens` is the last of the request, as far as the workers know.
        """
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
                text += self._shown_stop()
                break
        self._delivered += taken
        if finish is not None and self._stop_string is None:
            text += self._flush()
        over = FinishReason.STOP if self._stop_string is not None else finish
        self.sink.delta(StreamDelta(index, tokens[:taken], text, None if over is None else self._finished(over)))
        return self._stop_string is not None

    @property
    def delivered(self) -> int:
        """Tokens that the sink has had; what comes after a stop string is not among them."""
        return self._delivered

    def finish(self, reason: FinishReason, ledger: Ledger) -> StreamEnd:
        """Say the last word of a good end, and return it."""
        text = "" if self._flushed or self._stop_string is not None else self._flush()
        finished = self._finished(FinishReason.STOP if self._stop_string is not None else reason)
        end = StreamEnd(
            reason=finished.reason,
            text=text,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._delivered,
            ledger=ledger,
            stop_reason=finished.stop_reason,
        )
        self.sink.done(end)
        return end

    def _flush(self) -> str:
        """What was held back; it may complete a stop string."""
        self._flushed = True
        tail = self._matcher.push(self._detokenizer.flush())
        self._stop_string = tail.stop
        return tail.text + (self._matcher.flush() if tail.stop is None else self._shown_stop())

    def _finished(self, reason: FinishReason) -> Finished:
        stop = self._stop_string if self._stop_string is not None else self._stop_token(reason)
        return Finished(reason, stop)

    def fail(self, code: FailureCode, message: str) -> None:
        self.sink.failed(code, message, None)

    def _shown_stop(self) -> str:
        return self._stop_string or "" if self._include_stop_string else ""

    def _stop_token(self, reason: FinishReason) -> int | None:
        asked = self._last_token in self._sampling.stop_token_ids
        return self._last_token if reason is FinishReason.STOP and asked else None
