"""What does an evaluation keep of the streamed completions among the exchanges of a tool?

Pure: exchanges to one `RequestResult` each, on the tap's clock. A token's time is that of the piece in which its
event's line came to its end. An event brings as many tokens as its running usage has grown by, where the tool asked for
that; else one if it has a choice, but for the one that only names the role. The usage at the end tells the same sum.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from bench.compat.exchanges import Exchange
from bench.compat.tap import Piece
from launch.evaluation.results import Outcome, RequestResult

_TURNED_AWAY = (429, 503)
_ERROR_CHARS = 200


class Streamed(Struct, frozen=True, kw_only=True):
    """A streamed completion.

    Attributes:
        names: what a tool may call it: its X-Request-ID, and the id that the server gave its answer.
        shown_s: when each event with text came, on the clock of `result`; some tokens show none.
        counted: tokens, by events.
        told: tokens, by the usage at the end; None: there was none.
    """

    names: frozenset[str]
    result: RequestResult
    shown_s: tuple[float, ...]
    counted: int
    told: int | None


class _Asked(Struct):
    stream: bool = False
    max_tokens: int | None = None
    max_completion_tokens: int | None = None


class _Delta(Struct):
    role: str | None = None
    content: str | None = None


class _Choice(Struct):
    delta: _Delta | None = None  # of a chat
    text: str | None = None  # of a completion


class _Usage(Struct):
    prompt_tokens: int
    completion_tokens: int


class _Event(Struct):
    id: str | None = None
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


def streamed(heard: Iterable[Exchange]) -> list[Streamed]:
    """In the order in which they were sent; `index` is the place in it. Times start with the first of them.

    Raises:
        msgspec.DecodeError: an event is not in the form of the OpenAI API.
    """
    asked = [(one, _asked(one)) for one in heard if one.target.partition("?")[0].endswith("/completions")]
    streams = [(one, form) for one, form in asked if form.stream]
    origin_s = streams[0][0].sent_s if streams else 0.0
    return [_read(index, one, form, origin_s) for index, (one, form) in enumerate(streams)]


def _asked(exchange: Exchange) -> _Asked:
    try:
        return msgspec.json.decode(exchange.body, type=_Asked)
    except msgspec.DecodeError:
        return _Asked()  # the server refuses it, too


def _read(index: int, exchange: Exchange, form: _Asked, origin_s: float) -> Streamed:
    tokens_s: list[float] = []
    shown_s: list[float] = []
    names = {exchange.headers["x-request-id"]} if "x-request-id" in exchange.headers else set()
    usage: _Usage | None = None
    error = None
    for at_s, payload in events(exchange.answer):
        event = msgspec.json.decode(payload, type=_Event)
        names |= {event.id} if event.id else set()
        if event.error is not None:
            error = str(event.error)
            break
        tokens_s += [at_s - origin_s] * _tokens(event, len(tokens_s))
        shown_s += [at_s - origin_s] * any(_shows_text(choice) for choice in event.choices)
        usage = event.usage or usage
    outcome, why = _outcome(exchange, error)
    return Streamed(
        names=frozenset(names),
        result=RequestResult(
            index=index,
            arrival_s=exchange.sent_s - origin_s,  # what the tool planned, the wire does not show
            sent_s=exchange.sent_s - origin_s,
            token_s=tuple(tokens_s),
            end_s=exchange.over_s - origin_s,
            outcome=outcome,
            error=why,
            prompt_tokens=usage.prompt_tokens if usage is not None else None,
            asked_tokens=form.max_completion_tokens or form.max_tokens,
        ),
        shown_s=tuple(shown_s),
        counted=len(tokens_s),
        told=usage.completion_tokens if usage is not None else None,
    )


def events(pieces: Sequence[Piece]) -> Iterator[tuple[float, bytes]]:
    """The payloads of a stream of server-sent events without the last, [DONE], wherever it was cut into pieces."""
    rest = b""
    for at_s, data in pieces:
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            payload = line.removeprefix(b"data:").strip()
            if line.startswith(b"data:") and payload != b"[DONE]":
                yield at_s, payload


def _tokens(event: _Event, before: int) -> int:
    if not event.choices:
        return 0
    if event.usage is not None:
        return max(0, event.usage.completion_tokens - before)
    delta = event.choices[0].delta
    return 0 if delta is not None and delta.role is not None and not delta.content else 1


def _shows_text(choice: _Choice) -> bool:
    return bool(choice.text or (choice.delta is not None and choice.delta.content))


def _outcome(exchange: Exchange, error: str | None) -> tuple[Outcome, str | None]:
    if exchange.status is not None and exchange.status != 200:
        text = b"".join(piece.data for piece in exchange.answer).decode(errors="replace")[:_ERROR_CHARS]
        turned_away = exchange.status in _TURNED_AWAY
        return Outcome.REJECTED if turned_away else Outcome.FAILED, f"{exchange.status}: {text}"
    if error is not None:
        return Outcome.FAILED, error[:_ERROR_CHARS]
    if exchange.ended_s is not None:
        return Outcome.COMPLETED, None
    if exchange.broken_s is not None:
        return Outcome.FAILED, "incomplete: the server ended the connection"
    return Outcome.CUT_OFF, "incomplete: the tool left, or the recording ended"
