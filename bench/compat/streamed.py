"""What does an evaluation keep of the streamed completions among the exchanges of a tool?

Pure: exchanges to one `RequestResult` each, on the tap's clock. Events are read, tokens counted and errors understood
by the code of an evaluation (`launch.evaluation.chunks`, `launch.evaluation.errors`). A token's time is that of the
piece in which its event's line came to its end.
"""

from collections.abc import Iterable

import msgspec
from msgspec import Struct

from bench.compat.exchanges import Exchange
from launch.evaluation.chunks import DONE, Lines, TokenCount, decode_chunk
from launch.evaluation.errors import amid_stream, refusal
from launch.evaluation.results import Outcome, RequestResult


class Streamed(Struct, frozen=True, kw_only=True):
    """A streamed completion.

    Attributes:
        names: what a tool may call it: its X-Request-ID, and the id that the server gave its answer.
        shown_s: when each event with text came, on the clock of `result`; some tokens show none.
        counted: tokens, by events; `result` has those of the usage at the end where it tells another number.
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
    lines, count = Lines(), TokenCount()
    tokens_s: list[float] = []
    shown_s: list[float] = []
    names = {exchange.headers["x-request-id"]} if "x-request-id" in exchange.headers else set()
    error, done = None, False
    payloads = ((piece.at_s - origin_s, line) for piece in exchange.answer for line in lines.feed(piece.data))
    for at_s, payload in payloads:
        if payload == DONE:
            done = True
            continue
        chunk = decode_chunk(payload)
        if chunk.error is not None:
            error = amid_stream(payload)
            break
        names |= {chunk.id} if chunk.id else set()
        tokens_s += [at_s] * count.add(chunk, at_s)
        shown_s += [at_s] * any(choice.shown for choice in chunk.choices)
    outcome, why = _outcome(exchange, error, whole=done or count.finished)
    corrected = count.corrected() if outcome is Outcome.COMPLETED else None
    return Streamed(
        names=frozenset(names),
        result=RequestResult(
            index=index,
            arrival_s=exchange.sent_s - origin_s,  # what the tool planned, the wire does not show
            sent_s=exchange.sent_s - origin_s,
            token_s=tuple(tokens_s if corrected is None else corrected),
            end_s=exchange.over_s - origin_s,
            outcome=outcome,
            error=why,
            prompt_tokens=count.usage.prompt_tokens if count.usage is not None else None,
            asked_tokens=form.max_completion_tokens or form.max_tokens,
        ),
        shown_s=tuple(shown_s),
        counted=len(tokens_s),
        told=count.usage.completion_tokens if count.usage is not None else None,
    )


def _outcome(exchange: Exchange, error: str | None, *, whole: bool) -> tuple[Outcome, str | None]:
    if exchange.status is not None and exchange.status != 200:
        refused = refusal(exchange.status, b"".join(piece.data for piece in exchange.answer))
        return Outcome.REJECTED if refused.turned_away else Outcome.FAILED, refused.error
    if error is not None:
        return Outcome.FAILED, error
    if exchange.ended_s is not None:
        return (Outcome.COMPLETED, None) if whole else (Outcome.FAILED, "incomplete: the stream broke off")
    if exchange.broken_s is not None:
        return Outcome.FAILED, "incomplete: the server ended the connection"
    return Outcome.CUT_OFF, "incomplete: the tool left, or the recording ended"
