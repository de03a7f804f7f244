"""Why did this request take so long?

`kvrelay explain`: the parts of one request in the order of time, what overlapped them, what nobody measured, the
largest part with what would shorten it, and the part that exceeds the median of the other requests most. Requests come
from the results of an evaluation, or from the coordinator's memory of its newest answers; E2E is what the client saw
in the former and what the coordinator saw in the latter.
"""

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

import msgspec
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from launch.client import StreamingClient
from launch.evaluation.advice import ADVICE, RESIDUAL
from launch.evaluation.breakdown import Breakdown, Part, breakdown, of_ledger
from launch.evaluation.results import from_lines
from launch.stats import details, milliseconds, told_parts, transfer_detail
from runtime.stages import Ledger
from transport.messages.client import LEDGERS_AT_ONCE, MAX_LEDGERS, AnswerLedger

_BAR = 16  # characters for the whole of E2E
_MOST_NAMED = 5
_RANK = re.compile(r"p(\d{1,3}(?:\.\d+)?)")


class CannotExplain(Exception):
    """There is no such request, or nothing is known of it; the text says what there is."""


class Explained(Struct, frozen=True, kw_only=True):
    """A request that can be explained."""

    number: int  # index in the results, or the coordinator's number
    id: str  # "" in results
    prompt_tokens: int | None
    tokens: int
    ledger: Ledger
    found: Breakdown
    seen_by: str  # whose E2E it is: "client" or "coordinator"


def of_file(path: Path) -> list[Explained]:
    """The completed requests of a file of `RequestResult`, one JSON object a line.

    Raises:
        CannotExplain: it cannot be read, holds something else, or no request with a ledger.
    """
    try:
        results = list(from_lines(path.read_bytes().splitlines()))
    except OSError as error:
        raise CannotExplain(f"{path} cannot be read: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise CannotExplain(f"{path} does not hold the results of an evaluation: {error}") from error
    told = [
        Explained(
            number=result.index,
            id="",
            prompt_tokens=result.prompt_tokens,
            tokens=len(result.token_s),
            ledger=result.ledger,
            found=found,
            seen_by="client",
        )
        for result in results
        if result.ledger is not None and (found := breakdown(result)) is not None
    ]
    if not told:
        raise CannotExplain(f"{path} holds {len(results)} requests, and of none a complete answer with its ledger")
    return told


async def newest_answers(client: StreamingClient) -> list[AnswerLedger]:
    """Those that a running cell remembers, whoever asked for them, the newest last.

    Raises:
        launch.client.ServerUnreachable: no answer.
    """
    found: dict[int, AnswerLedger] = {}  # by number: those that end meanwhile push others on to the next page
    for skip in range(0, MAX_LEDGERS, LEDGERS_AT_ONCE):
        page = await client.ledgers(skip)
        found = {one.request: one for one in page} | found
        if len(page) < LEDGERS_AT_ONCE:
            break
    return list(found.values())


def left_out(answers: Iterable[AnswerLedger]) -> list[AnswerLedger]:
    """Answers that cannot be explained: a worker was lost, or its numbers came too late."""
    return [one for one in answers if of_ledger(one.ledger, one.tokens, None) is None]


def of_cell(answers: Sequence[AnswerLedger]) -> list[Explained]:
    """The newest answers of a running cell, but those that are `left_out`.

    Raises:
        CannotExplain: there are none, or of none have all workers told their times.
    """
    told = [
        Explained(
            number=answer.request,
            id=answer.id,
            prompt_tokens=answer.prompt_tokens,
            tokens=answer.tokens,
            ledger=answer.ledger,
            found=found,
            seen_by="coordinator",
        )
        for answer in answers
        if (found := of_ledger(answer.ledger, answer.tokens, None)) is not None
    ]
    if not told:
        raise CannotExplain(
            f"{_without_times(answers)}; ask the cell for another answer"
            if answers
            else "this cell has not ended an answer yet: `kvrelay generate` asks it for one"
        )
    return told


def choose(requests: Sequence[Explained], which: str) -> Explained:
    """The request that `which` names: a number, an id, `slowest`, `last`, or `p99` by nearest rank of E2E.

    Raises:
        CannotExplain: none is.
    """
    by_e2e = sorted(requests, key=lambda one: one.found.e2e_s)
    if which == "slowest":
        return by_e2e[-1]
    if which == "last":
        return requests[-1]
    if (rank := _RANK.fullmatch(which)) is not None and 0 < float(rank[1]) <= 100:
        return by_e2e[math.ceil(float(rank[1]) / 100 * len(by_e2e)) - 1]
    named = [one for one in requests if which and which in (str(one.number), one.id)]
    if named:
        return named[-1]  # ids of clients may come again: the newest
    known = ", ".join(one.id or str(one.number) for one in requests[-3:])
    raise CannotExplain(
        f"no request {which!r} among {len(requests)} (the last: {known}); "
        "give a number, an id, `slowest`, `last` or a percentile such as `p99`"
    )


def largest(request: Explained) -> Part:
    """The part that took longest, the residual among them."""
    return max(_with_residual(request.found), key=lambda part: part.seconds)


def largest_excess(request: Explained, requests: Sequence[Explained]) -> tuple[Part, float]:
    """The part that exceeds its median over all requests most, and that median; who lacks a stage has 0 of it."""
    medians = stage_medians(requests)
    part = max(_with_residual(request.found), key=lambda part: part.seconds - medians[part.stage])
    return part, medians[part.stage]


def stage_medians(requests: Sequence[Explained]) -> dict[str, float]:
    seconds = [{part.stage: part.seconds for part in _with_residual(one.found)} for one in requests]
    stages = {stage for one in seconds for stage in one}
    return {stage: median(one.get(stage, 0.0) for one in seconds) for stage in stages}


def show_left_out(console: Console, answers: Sequence[AnswerLedger]) -> None:
    """A line that counts and names those of `answers` that are `left_out`, if any is."""
    if without := left_out(answers):
        console.print(_without_times(without), style="bold yellow", highlight=False, markup=False)


def _without_times(answers: Sequence[AnswerLedger]) -> str:
    named = ", ".join(f"{one.request} ({one.id})" for one in answers[-_MOST_NAMED:])
    more = f" and {len(answers) - _MOST_NAMED} older ones" if len(answers) > _MOST_NAMED else ""
    return f"{len(answers)} of the newest answers lack the times of a worker and cannot be explained: {named}{more}"


def show(console: Console, request: Explained, requests: Sequence[Explained]) -> None:
    found, ledger = request.found, request.ledger
    name = f"request {request.number}" + (f" ({request.id})" if request.id else "")
    prompt = "" if request.prompt_tokens is None else f"{request.prompt_tokens} prompt tokens, "
    console.print(f"[bold]{name}[/]: {prompt}{request.tokens} tokens", highlight=False)
    ends = (
        "send -> last token" if request.seen_by == "client" else "request received -> last token passed to the socket"
    )
    console.print(f"E2E {milliseconds(found.e2e_s)}, as the {request.seen_by} saw it: {ends}", highlight=False)
    if found.client_queue_s > 0:
        waited = f"before that {milliseconds(found.client_queue_s)} in the client's own queue"
        console.print(waited, highlight=False)
    console.print(_table(request, stage_medians(requests)))
    _show_beside(console, ledger, found)
    _show_reasons(console, request, requests)


def _table(request: Explained, medians: dict[str, float]) -> Table:
    table = Table(show_header=True, header_style="bold", box=None, padding=(0, 2, 0, 0))
    for title in ("part", "time", "share", "", "median", "measured by"):
        table.add_column(title, justify="right" if title in ("time", "share", "median") else "left", no_wrap=True)
    e2e_s = request.found.e2e_s
    for part in (*told_parts(request.found), _residual(request.found)):
        share = part.seconds / e2e_s if e2e_s > 0 else 0.0
        bar = "█" * round(max(share, 0.0) * _BAR)
        typical = milliseconds(medians[part.stage])
        table.add_row(part.stage, milliseconds(part.seconds), f"{share:.1%}", bar, typical, part.where)
    return table


def _show_beside(console: Console, ledger: Ledger, found: Breakdown) -> None:
    """What is no part, because it lies beside one."""
    stages, told = ledger.prefill, details(ledger)
    console.print("; ".join(f"{stage}: {told[stage]}" for stage in ("prefill", "decode") if stage in told))
    if stages is not None and stages.transfer_bytes:
        tail_s = sum(part.seconds for part in found.parts if part.stage == "transfer tail")
        hidden = max(1 - tail_s / stages.transfer_s, 0.0) if stages.transfer_s > 0 else 0.0
        moved = (
            f"transfer: {milliseconds(stages.transfer_s)}, {transfer_detail(stages)}, which hides {hidden:.0%} of it"
        )
        first = f"the first piece left {milliseconds(stages.transfer_first_s)} after the first chunk began"
        console.print(f"{moved}; {first}", highlight=False)
    out = f"token 1 was out {milliseconds(ledger.first_out_s)} after it came to the coordinator"
    console.print(f"{out}, {milliseconds(ledger.first_token_s)} after the request was submitted", highlight=False)
    places = "; ".join(f"{place.stage} {place.seconds * 1e3:.2f} ms" for place in found.places)
    console.print(f"residual: {places}", highlight=False)


def _show_reasons(console: Console, request: Explained, requests: Sequence[Explained]) -> None:
    part = largest(request)
    share = part.seconds / request.found.e2e_s if request.found.e2e_s > 0 else 0.0
    console.print(f"\n[bold]Largest part: {part.stage}[/], {milliseconds(part.seconds)} ({share:.0%})", highlight=False)
    console.print(f"  shorter by: {ADVICE[part.stage]}", highlight=False, soft_wrap=True)
    if len(requests) < 2:
        return
    excess, typical = largest_excess(request, requests)
    over_s = excess.seconds - typical
    if over_s <= 0:
        console.print(f"No part is longer than the median of {len(requests)} requests.", highlight=False)
        return
    more = f"{milliseconds(over_s)} over the median of {len(requests)} requests ({milliseconds(typical)})"
    console.print(f"[bold]Slower than others by: {excess.stage}[/], {more}", highlight=False)
    if excess.stage != part.stage:
        console.print(f"  shorter by: {ADVICE[excess.stage]}", highlight=False, soft_wrap=True)


def _with_residual(found: Breakdown) -> tuple[Part, ...]:
    return (*found.parts, _residual(found))


def _residual(found: Breakdown) -> Part:
    return Part(stage=RESIDUAL, seconds=found.residual_s, where="nobody")
