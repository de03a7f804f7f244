"""What does a client get to read of the tokens of its request?

One object per HTTP request turns the deltas of its choices into chunks of a stream or into one whole answer. The rules
that make the numbers of benchmark tools right: one chunk per delta (one per token, unless a slow reader let them
gather); the role comes together with the first token, not before; the finish reason stands on the chunk of the last
token; no chunk without a token, except usage at the very end. Loop thread only.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
from msgspec import UNSET, UnsetType

from coordinator.http.schemas import (
    AssistantMessage,
    CalledFunction,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    TextChoice,
    TextCompletion,
    TextLogprobs,
    TokenLogprob,
    ToolCallDelta,
    ToolCallItem,
    TopLogprob,
    Usage,
)
from coordinator.http.tools import AnswerReader, Call, JsonReader, Piece, TaggedReader, TextReader, form_of
from coordinator.http.translate import Asked
from coordinator.service import Prepared
from coordinator.streams import Finished, StreamDelta
from coordinator.text import Text
from runtime.params import FinishReason
from runtime.tokens import SampledToken, TokenLogprobs


@dataclass(frozen=True, slots=True)
class Head:
    """What is the same on every chunk."""

    id: str
    created: int  # seconds since 1970
    model: str


@dataclass(slots=True)
class _Choice:
    """How far one choice has come; `texts` and `tokens` are kept only for an answer in one piece."""

    prompt: tuple[int, ...]
    texts: list[str] = field(default_factory=list)
    tokens: list[SampledToken] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    untold: list[SampledToken] = field(default_factory=list)  # streamed with the next chunk: their text was held back
    count: int = 0
    shown_chars: int = 0
    finished: Finished | None = None


class _Books:
    """The choices of one HTTP request and their usage."""

    def __init__(self, asked: Asked, prepared: Sequence[Prepared]) -> None:
        self.asked = asked
        self.choices = [_Choice(one.prompt) for one in prepared for _ in range(asked.n)]
        self._prompt_tokens = sum(len(one.prompt) for one in prepared)

    def note(self, number: int, delta: StreamDelta) -> _Choice:
        choice = self.choices[number]
        choice.count += len(delta.tokens)
        choice.finished = delta.finish
        if not self.asked.stream:
            choice.tokens.extend(delta.tokens)
        return choice

    @property
    def finished(self) -> bool:
        return all(choice.finished is not None for choice in self.choices)

    @property
    def sent_tokens(self) -> bool:
        return any(choice.count for choice in self.choices)

    def usage(self) -> Usage:
        """A prompt counts once, however many answers it gets."""
        completion = sum(choice.count for choice in self.choices)
        return Usage(self._prompt_tokens, completion, self._prompt_tokens + completion)

    def running_usage(self, choice: _Choice) -> Usage | UnsetType:
        if not self.asked.continuous_usage:
            return UNSET
        return Usage(len(choice.prompt), choice.count, len(choice.prompt) + choice.count)

    def token_ids(self, tokens: Sequence[SampledToken]) -> list[int] | UnsetType:
        return [token.token_id for token in tokens] if self.asked.return_token_ids else UNSET

    def prompt_ids(self, choice: _Choice) -> list[int] | UnsetType:
        return list(choice.prompt) if self.asked.return_token_ids else UNSET


class ChatAnswer:
    """Of `POST /v1/chat/completions`."""

    def __init__(self, head: Head, asked: Asked, prepared: Sequence[Prepared], text: Text) -> None:
        self.books = _Books(asked, prepared)
        self._head = head
        self._text = text
        self._readers = [_reader(asked, text) for _ in self.books.choices]
        extras = asked.logprobs or asked.return_token_ids or asked.continuous_usage or asked.tool_choice != "none"
        self._frames = None if extras else [self._frame(number) for number in range(len(self.books.choices))]

    @property
    def id(self) -> str:
        """As the client knows the request."""
        return self._head.id

    def chunk(self, number: int, delta: StreamDelta) -> bytes:
        """The events of one delta; none while what may become a call is held back."""
        choice = self.books.note(number, delta)
        first = choice.count == len(delta.tokens)
        if self._frames is not None and not first and delta.finish is None:
            before, after = self._frames[number]
            return before + msgspec.json.encode(delta.text) + after
        piece = self._read(number, delta)
        fresh = self._fresh(choice, piece)
        body = b""
        if first:
            body = _event(self._chunk(number, choice, ChatDelta(role="assistant", content="")))
        choice.untold.extend(delta.tokens)
        held_back = self.books.asked.tool_choice != "none" and not piece.text and not fresh
        if held_back and delta.finish is None:
            return body
        calls = len(choice.calls)
        content = ChatDelta(
            content=piece.text if piece.text or not (held_back or fresh) else UNSET,
            tool_calls=[
                ToolCallDelta(calls - len(fresh) + place, _call_id(), CalledFunction(call.name, call.arguments))
                for place, call in enumerate(fresh)
            ]
            or UNSET,
        )
        tokens, choice.untold = choice.untold, []
        return body + _event(self._chunk(number, choice, content, tokens, over=delta.finish is not None))

    def whole(self) -> bytes:
        choices = []
        for number, choice in enumerate(self.books.choices):
            text = "".join(choice.texts)
            message = AssistantMessage(
                content=None if choice.calls and not text else text,
                tool_calls=[
                    ToolCallItem(_call_id(), CalledFunction(call.name, call.arguments)) for call in choice.calls
                ]
                or UNSET,
            )
            finished = _finished(choice)
            choices.append(
                ChatChoice(
                    index=number,
                    message=message,
                    finish_reason=self._reason(choice),
                    stop_reason=finished.stop_reason,
                    logprobs=self._logprobs(choice.tokens),
                    token_ids=self.books.token_ids(choice.tokens),
                )
            )
        head, books = self._head, self.books
        prompt_ids = books.prompt_ids(books.choices[0])
        return msgspec.json.encode(
            ChatCompletion(head.id, head.created, head.model, choices, books.usage(), prompt_token_ids=prompt_ids)
        )

    def usage_chunk(self) -> bytes:
        return _event(ChatChunk(self._head.id, self._head.created, self._head.model, [], usage=self.books.usage()))

    def collect(self, number: int, delta: StreamDelta) -> None:
        choice = self.books.note(number, delta)
        piece = self._read(number, delta)
        choice.texts.append(piece.text)
        self._fresh(choice, piece)

    def _frame(self, number: int) -> tuple[bytes, bytes]:
        """What surrounds the text on a chunk of text alone: most chunks are, and nothing else on them changes."""
        mark = secrets.token_hex(16)
        chunk = _event(self._chunk(number, self.books.choices[number], ChatDelta(content=mark)))
        before, _, after = chunk.partition(b'"' + mark.encode() + b'"')
        return before, after

    def _read(self, number: int, delta: StreamDelta) -> Piece:
        reader = self._readers[number]
        piece = reader.push(delta.text)
        if delta.finish is None:
            return piece
        last = reader.finish()
        return Piece(piece.text + last.text, piece.calls + last.calls)

    def _fresh(self, choice: _Choice, piece: Piece) -> tuple[Call, ...]:
        """The calls of `piece` that the client gets."""
        fresh = piece.calls
        if not self.books.asked.parallel_tool_calls:
            fresh = fresh[: max(0, 1 - len(choice.calls))]
        choice.calls.extend(fresh)
        return fresh

    def _reason(self, choice: _Choice) -> str | None:
        if choice.finished is None:
            return None
        complete = choice.finished.reason is FinishReason.STOP  # else a call behind the last one may be missing
        return "tool_calls" if choice.calls and complete else str(choice.finished.reason)

    def _chunk(
        self,
        number: int,
        choice: _Choice,
        content: ChatDelta,
        tokens: Sequence[SampledToken] | None = None,
        *,
        over: bool = False,
    ) -> ChatChunk:
        """`tokens` are what the chunk carries; the one with the role carries nothing."""
        entry = ChatChunkChoice(
            index=number,
            delta=content,
            logprobs=None if tokens is None else self._logprobs(tokens),
            finish_reason=self._reason(choice) if over else None,
            stop_reason=_finished(choice).stop_reason if over else UNSET,
            token_ids=UNSET if tokens is None else self.books.token_ids(tokens),
        )
        head = self._head
        usage = self.books.running_usage(choice)
        return ChatChunk(head.id, head.created, head.model, [entry], usage=usage)

    def _logprobs(self, tokens: Sequence[SampledToken]) -> ChatLogprobs | None:
        if not self.books.asked.logprobs:
            return None
        return ChatLogprobs([_token_logprob(self._text, token.token_id, _logprobs_of(token)) for token in tokens])


class TextAnswer:
    """Of `POST /v1/completions`."""

    def __init__(self, head: Head, asked: Asked, prepared: Sequence[Prepared], text: Text) -> None:
        self.books = _Books(asked, prepared)
        self._head = head
        self._text = text

    @property
    def id(self) -> str:
        """As the client knows the request."""
        return self._head.id

    def chunk(self, number: int, delta: StreamDelta) -> bytes:
        choice = self.books.note(number, delta)
        text = delta.text
        if choice.count == len(delta.tokens):
            text = self._echoed(choice) + text
        entry = TextChoice(
            index=number,
            text=text,
            logprobs=self._logprobs(choice, delta.tokens),
            finish_reason=None if delta.finish is None else str(delta.finish.reason),
            stop_reason=UNSET if delta.finish is None else delta.finish.stop_reason,
            token_ids=self.books.token_ids(delta.tokens),
        )
        return _event(self._body([entry], self.books.running_usage(choice)))

    def whole(self) -> bytes:
        choices = [
            TextChoice(
                index=number,
                text=self._echoed(choice) + "".join(choice.texts),
                logprobs=self._logprobs(choice, choice.tokens),
                finish_reason=str(_finished(choice).reason),
                stop_reason=_finished(choice).stop_reason,
                token_ids=self.books.token_ids(choice.tokens),
                prompt_token_ids=self.books.prompt_ids(choice),
            )
            for number, choice in enumerate(self.books.choices)
        ]
        return msgspec.json.encode(self._body(choices, self.books.usage()))

    def usage_chunk(self) -> bytes:
        return _event(self._body([], self.books.usage()))

    def collect(self, number: int, delta: StreamDelta) -> None:
        self.books.note(number, delta).texts.append(delta.text)

    def _echoed(self, choice: _Choice) -> str:
        return self._text.decode(choice.prompt) if self.books.asked.echo else ""

    def _body(self, choices: list[TextChoice], usage: Usage | UnsetType) -> TextCompletion:
        return TextCompletion(self._head.id, self._head.created, self._head.model, choices, usage=usage)

    def _logprobs(self, choice: _Choice, tokens: Sequence[SampledToken]) -> TextLogprobs | None:
        if not self.books.asked.logprobs:
            return None
        texts = [self._text.token_text(token.token_id) for token in tokens]
        offsets = []
        for text in texts:
            offsets.append(choice.shown_chars)
            choice.shown_chars += len(text)
        known = [_logprobs_of(token) for token in tokens]
        return TextLogprobs(
            tokens=texts,
            token_logprobs=[one.chosen for one in known],
            top_logprobs=[{self._text.token_text(token): logprob for token, logprob in one.top} for one in known],
            text_offset=offsets,
        )


Answer = ChatAnswer | TextAnswer


def _reader(asked: Asked, text: Text) -> AnswerReader:
    if asked.tool_choice == "none":
        return TextReader()
    if asked.tool_choice == "required" or form_of(text.chat_template) == "json":
        return JsonReader()  # a required call is made under a grammar, without the template's tags
    return TaggedReader()


def _finished(choice: _Choice) -> Finished:
    if choice.finished is None:
        raise AssertionError("a choice is shown as finished that is not")
    return choice.finished


def _logprobs_of(token: SampledToken) -> TokenLogprobs:
    if token.logprobs is None:
        raise AssertionError("log-probabilities were asked for and not made")
    return token.logprobs


def _token_logprob(text: Text, token_id: int, logprobs: TokenLogprobs) -> TokenLogprob:
    top = [
        TopLogprob(text.token_text(other), logprob, list(text.token_bytes(other))) for other, logprob in logprobs.top
    ]
    return TokenLogprob(text.token_text(token_id), logprobs.chosen, list(text.token_bytes(token_id)), top)


def _call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def _event(body: object) -> bytes:
    """One server-sent event."""
    return b"data: " + msgspec.json.encode(body) + b"\n\n"
