"""Is the right request chosen, and the right part blamed?"""

import asyncio
import io
from collections import deque
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from launch.evaluation.advice import ADVICE
from launch.evaluation.results import Outcome, RequestResult, to_lines
from launch.explain import (
    CannotExplain,
    choose,
    largest,
    largest_excess,
    newest_answers,
    of_cell,
    of_file,
    show,
    show_left_out,
    stage_medians,
)
from runtime.stages import DecodeStages, Ledger, PrefillStages
from transport.messages.client import LEDGERS_AT_ONCE, MAX_LEDGERS, AnswerLedger


def ledger(*, queue_s: float = 0.0, decode_s: float = 2.0) -> Ledger:
    return Ledger(
        queue_s=queue_s,
        total_s=queue_s + 1.5 + decode_s,
        send_s=0.125,
        prefill=PrefillStages(
            queue_s=0.25, compute_s=0.75, chunks=1, chunk_s=(0.75,), transfer_s=0.5, transfer_tail_s=0.25,
            transfer_bytes=1000,
        ),
        decode=DecodeStages(intake_s=1.25, verify_s=0.125, decode_s=decode_s, first_step_s=0.25, steps=3),
        prefill_worker="prefill-0",
        decode_worker="decode-0",
    )  # fmt: skip


def result(index: int, **changes: float) -> RequestResult:
    told = ledger(**changes)
    end = 10.0 + told.total_s + 0.25
    return RequestResult(
        index=index, arrival_s=9.5, sent_s=10.0, token_s=(11.0, 12.0, 12.5, end), end_s=end, ledger=told
    )


RESULTS = [result(0), result(1, queue_s=1.0), result(2, decode_s=4.0), result(3)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "results.jsonl"
    failed = RequestResult(index=9, arrival_s=0.0, sent_s=0.0, end_s=1.0, outcome=Outcome.FAILED, error="internal")
    path.write_bytes(b"".join(to_lines([*RESULTS, failed])))
    return path


@pytest.mark.parametrize(
    ("which", "number"),
    [("slowest", 2), ("p100", 2), ("p75", 1), ("p51", 1), ("p50", 3), ("p1", 0), ("1", 1), ("last", 3)],
)
def test_requests_are_chosen_by_number_or_rank(file: Path, which: str, number: int) -> None:
    told = of_file(file)
    assert len(told) == 4, "without the one that failed"
    assert choose(told, which).number == number


@pytest.mark.parametrize("which", ["9", "p0", "p101", "chatcmpl-1", ""])
def test_an_unknown_request_is_answered_by_what_there_is(file: Path, which: str) -> None:
    with pytest.raises(CannotExplain, match="among 4"):
        choose(of_file(file), which)


@pytest.mark.parametrize("text", ["", "{}\n", "no json", '{"index": 1}'], ids=["empty", "no fields", "no json", "half"])
def test_a_file_without_results_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(CannotExplain, match=r"bad\.jsonl"):
        of_file(path)
    with pytest.raises(CannotExplain, match="cannot be read"):
        of_file(tmp_path / "none.jsonl")


def test_what_is_large_and_what_is_unusual_are_two_things(file: Path) -> None:
    told = of_file(file)
    queued = choose(told, "1")
    assert largest(queued).stage == "decode"
    part, typical = largest_excess(queued, told)
    assert (part.stage, part.seconds, typical) == ("queue", 1.0, 0.0)
    assert stage_medians(told)["decode"] == 1.75
    console = Console(file=io.StringIO(), width=100)
    show(console, queued, told)
    text = console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO
    assert "Largest part: decode" in text
    assert "Slower than others by: queue" in text
    assert "hides 50%" in text
    assert "500.0 ms in the client's own queue" in text


def test_answers_of_a_cell_are_known_by_id_and_number_and_seen_by_the_coordinator() -> None:
    answers = [
        AnswerLedger(request=number, id=name, ended_s=1.0, prompt_tokens=5, tokens=4, ledger=ledger())
        for number, name in ((7, "r0"), (8, "chatcmpl-1"), (9, "r0"))
    ]
    told = of_cell(answers)
    assert [choose(told, which).number for which in ("r0", "7", "chatcmpl-1")] == [9, 7, 8]
    assert told[0].found.e2e_s == 3.625, "queue to send, without the ways to the client"
    assert told[0].seen_by == "coordinator"
    with pytest.raises(CannotExplain, match="not ended an answer"):
        of_cell([])


def test_every_stage_has_advice() -> None:
    local = msgspec.structs.replace(ledger(), prefill_worker="decode-0")
    one = AnswerLedger(request=0, id="a", ended_s=0.0, prompt_tokens=1, tokens=1, ledger=ledger())
    found = of_cell([one, msgspec.structs.replace(one, tokens=4), msgspec.structs.replace(one, ledger=local)])
    assert {part.stage for told in found for part in told.found.parts} | {"residual"} == ADVICE.keys()


def answers_of_a_cell(count: int) -> list[AnswerLedger]:
    return [
        AnswerLedger(request=number, id="r", ended_s=1.0, prompt_tokens=5, tokens=4, ledger=ledger())
        for number in range(count)
    ]


def test_answers_that_lack_the_times_of_a_worker_are_counted_and_named() -> None:
    good, *bad = answers_of_a_cell(8)
    bad = [msgspec.structs.replace(one, id="[/]", ledger=Ledger(total_s=1.0)) for one in bad]
    assert [one.number for one in of_cell([*bad, good])] == [0]
    console = Console(file=io.StringIO(), width=300)
    show_left_out(console, [good])
    show_left_out(console, [*bad, good])
    (line,) = console.file.getvalue().splitlines()  # type: ignore[attr-defined]  # a StringIO
    assert line.startswith("7 of the newest answers lack the times of a worker")
    assert line.endswith(": 3 ([/]), 4 ([/]), 5 ([/]), 6 ([/]), 7 ([/]) and 2 older ones")
    with pytest.raises(CannotExplain, match=r"7 of the newest .*ask the cell for another"):
        of_cell(bad)


@pytest.mark.parametrize(("count", "oldest"), [(0, 0), (99, 0), (100, 0), (250, 0), (MAX_LEDGERS, 9)])
def test_all_answers_that_a_cell_remembers_are_fetched_though_others_end_meanwhile(count: int, oldest: int) -> None:
    remembered = deque(answers_of_a_cell(count), maxlen=MAX_LEDGERS)

    class Client:
        async def ledgers(self, skip: int) -> tuple[AnswerLedger, ...]:
            page = list(remembered)[: max(len(remembered) - skip, 0)][-LEDGERS_AT_ONCE:]
            number = remembered[-1].request + 1 if remembered else 0
            remembered.append(msgspec.structs.replace(answers_of_a_cell(1)[0], request=number))
            return tuple(page)

    client: Any = Client()
    numbers = [one.request for one in asyncio.run(newest_answers(client))]
    assert numbers == list(range(oldest, count)), "every one that was not forgotten meanwhile"
