"""Do the parts of a request lie one behind the other, and is the rest exactly what nobody measured?

A cell is simulated to the instant: the real machine and moments of the coordinator; workers and a client that are
lists of durations. Every process has a clock of its own, with an origin that no other knows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from coordinator.events import DecodeLetGo, Finish, FirstTokenMade, PrefillLetGo, StopStringFound, Submitted, TokensMade
from coordinator.ledger import Moments
from launch.evaluation.breakdown import HAND_OFF, Breakdown, breakdown
from launch.evaluation.results import RequestResult
from runtime.params import FinishReason, SamplingParams
from runtime.stages import DecodeStages, Ledger, PrefillStages
from tests.support.cells import AGGREGATED, Cell, finished, token
from transport.messages.worker import TokenStep

TICK = 2.0**-12  # sums of these are exact
SECONDS = st.integers(0, 4096).map(lambda ticks: ticks * TICK)
LAST = FinishReason.LENGTH
STOPPED = st.sampled_from(["no", "in a step", "behind it"])


@dataclass
class Process:
    """Who sees the instants of the simulation on a clock of its own."""

    origin: float

    def between(self, first: float, second: float) -> float:
        return (second + self.origin) - (first + self.origin)


class Draw:
    """Durations, and the sum of those that nobody measures."""

    def __init__(self, draw: Callable[[st.SearchStrategy[float]], float]) -> None:
        self._draw = draw
        self.unseen_s = 0.0

    def __call__(self) -> float:
        return self._draw(SECONDS)

    def unseen(self) -> float:
        seconds = self()
        self.unseen_s += seconds
        return seconds


class Simulation:
    """One request from the client's send to its last token; `at` is the instant."""

    def __init__(self, draw: Callable[[st.SearchStrategy[float]], float], *, local: bool) -> None:
        self.draw = Draw(draw)
        self.at = 1000.0
        self.cell = Cell(prefill=0, limits=AGGREGATED, link=False) if local else Cell()
        self.worker = [Process(draw(SECONDS)) for _ in range(2)]
        self.sent = self.at
        self.at += self.draw.unseen()
        self.moments = Moments("r0", self.at)
        self.moments.tokenise_s = self.draw()
        self.at += self.moments.tokenise_s + self.draw()
        self.moments.submitted_at = self.at
        self.feed(Submitted(0, (1,) * 8, SamplingParams(max_tokens=4, seed=0), 1e6))
        self.dispatched = self.at

    def feed(self, event: object) -> None:
        self.cell.now = self.at
        self.cell.feed(event)  # type: ignore[arg-type]  # an event

    def computed(self) -> tuple[float, PrefillStages]:
        """From the arrival of the prompt at its worker; when token 1 was there, and what the worker says."""
        arrived, clock = self.at, self.worker[0]
        self.at += self.draw()
        started, chunks = self.at, []
        for _ in range(2):
            chunks.append(self.draw())
            self.at += chunks[-1] + self.draw()
        stages = PrefillStages(
            queue_s=clock.between(arrived, started),
            compute_s=clock.between(started, self.at),
            chunks=2,
            chunk_s=tuple(chunks),
        )
        return self.at, stages

    def decoded(self, steps: int) -> tuple[float, float, float]:
        """From the end of the intake; seconds of join, of all steps and of the first."""
        joined = self.at
        self.at += self.draw()
        first, lengths = self.at, [self.draw() for _ in range(steps)]
        self.at += sum(lengths)
        clock = self.worker[1]
        return clock.between(joined, first), clock.between(first, self.at), lengths[0] if lengths else 0.0

    def ended(self, stopped: str, decode: DecodeStages, prefill: PrefillStages | None) -> None:
        if stopped != "no":
            self.feed(StopStringFound(0))
        self.feed(DecodeLetGo("d0", 0, 0, decode, None, prefill))

    def told(self, last_token_at: float) -> None:
        """The last token is text, then with the socket, then at the client."""
        self.at = last_token_at + self.draw()
        self.moments.token(last_token_at, self.at, last=True)
        self.at += self.draw()
        self.moments.passed(self.at, last=True)
        self.at += self.draw.unseen()

    def result(self, tokens: int) -> tuple[RequestResult, Breakdown]:
        last = finished(self.cell, 0)
        assert isinstance(last, Finish)
        ledger: Ledger = self.moments.complete(last.ledger, self.at)
        seen = RequestResult(
            index=0,
            arrival_s=self.sent - 0.5,
            sent_s=self.sent,
            token_s=(self.at,) * tokens,
            end_s=self.at,
            ledger=ledger,
        )
        found = breakdown(seen)
        assert found is not None
        return seen, found


def check(simulation: Simulation, found: Breakdown) -> None:
    assert found.e2e_s == simulation.at - simulation.sent
    assert found.client_queue_s == 0.5
    assert all(part.seconds >= 0 for part in found.parts)
    assert found.residual_s == simulation.draw.unseen_s
    assert sum(place.seconds for place in found.places) == found.residual_s
    assert all(place.seconds >= 0 for place in found.places)


def said_after(stopped: str, stages: DecodeStages, draw: Draw) -> DecodeStages:
    """What a decode worker says of an answer, `stages` of which are up to its last token.

    `in a step`: it hears of the stop string while it makes a token more, and drops that. `behind it`: that token was
    out by then, and may have ended the sequence.
    """
    if stopped == "no":
        return stages
    stages = replace(stages, join_s=stages.join_s if stages.steps else draw(), send_s=0.0)
    if stopped == "in a step":
        return stages
    more_s = draw()
    first_step_s = stages.first_step_s if stages.steps else more_s
    decode_s = stages.decode_s + more_s
    return replace(stages, decode_s=decode_s, first_step_s=first_step_s, send_s=draw(), steps=stages.steps + 1)


def discount(draw: Draw, stopped: str, decode: DecodeStages, said: DecodeStages, *, ways_s: float) -> None:
    """After a stop string nobody tells of the last token's send; time behind it can pass for that and for `ways_s`, the
    ways from and to the coordinator, but for no more.
    """
    if stopped != "no":
        draw.unseen_s += decode.send_s
    if stopped == "behind it" and decode.steps:
        draw.unseen_s -= min(said.decode_s - decode.decode_s, decode.send_s + ways_s)


@given(st.data(), STOPPED)
def test_the_rest_of_a_request_that_was_handed_off_is_what_the_messages_took(data: st.DataObject, stopped: str) -> None:
    run = Simulation(data.draw, local=False)
    draw = run.draw
    admit_left = run.dispatched + draw()
    prefill_left = admit_left + draw()
    run.moments.ordered(admit_left - run.dispatched, admit=True)
    run.moments.ordered(prefill_left - run.dispatched, admit=False)
    way_s = draw.unseen()
    run.at = prefill_left + way_s
    admit_way_s = min(draw(), way_s)
    token_1_at, stages = run.computed()
    tail_s = draw()
    run.at = token_1_at + tail_s + draw.unseen()  # the trailer
    taken_in, verify_wait_s, verify_s = run.at, draw(), draw()
    run.at += verify_wait_s + verify_s
    join_s, decode_s, first_step_s = run.decoded(3)
    send_s, back_s = draw(), draw.unseen()
    last_token_at = run.at + send_s + back_s

    run.at = token_1_at
    run.feed(FirstTokenMade("p0", 0, token(0), None))
    heard_late_s = data.draw(st.sampled_from([0.0, 8.0]))
    stages = replace(stages, transfer_s=tail_s, transfer_tail_s=tail_s + heard_late_s, transfer_bytes=4096)
    run.feed(PrefillLetGo("p0", 0, 0, stages, None))
    run.at = last_token_at
    last = LAST if stopped == "no" else None
    run.feed(TokensMade("d0", tuple(TokenStep(0, i, token(i), last if i == 3 else None) for i in (1, 2, 3))))
    decode = DecodeStages(
        intake_s=run.worker[1].between(admit_left + admit_way_s, taken_in),
        verify_s=verify_wait_s + verify_s,
        verify_wait_s=verify_wait_s,
        join_s=join_s,
        decode_s=decode_s,
        first_step_s=first_step_s,
        send_s=send_s,
        steps=3,
    )
    said = said_after(stopped, decode, draw)
    run.ended(stopped, said, None)
    run.told(last_token_at)
    _, found = run.result(4)
    if heard_late_s:  # it is cut where the decode worker went on, and no part overlaps another
        assert 0 <= found.residual_s <= draw.unseen_s + send_s
        assert [place.seconds for place in found.places if place.stage == HAND_OFF] == [0.0]
    else:
        discount(draw, stopped, decode, said, ways_s=admit_way_s + back_s)
        check(run, found)
    assert all(part.seconds >= 0 for part in found.parts)
    assert sum(part.seconds for part in found.parts) <= found.e2e_s


@given(st.data(), STOPPED, st.sampled_from([1, 2]))
def test_the_rest_of_a_request_that_stayed_is_what_the_messages_took(
    data: st.DataObject, stopped: str, tokens: int
) -> None:
    run = Simulation(data.draw, local=True)
    draw = run.draw
    run.at += draw()
    run.moments.ordered(run.at - run.dispatched, admit=False)
    order_way_s = draw.unseen()
    run.at += order_way_s
    token_1_at, stages = run.computed()
    decode = DecodeStages()
    if tokens == 2:
        join_s, decode_s, first_step_s = run.decoded(1)
        decode = DecodeStages(join_s=join_s, decode_s=decode_s, first_step_s=first_step_s, steps=1)
    decode = replace(decode, send_s=draw())
    back_s = draw.unseen()
    last_token_at = run.at + decode.send_s + back_s
    if tokens == 2:
        run.at = token_1_at
        run.feed(TokensMade("d0", (TokenStep(0, 0, token(0)),)))
    run.at = last_token_at
    last = LAST if stopped == "no" else None
    run.feed(TokensMade("d0", (TokenStep(0, tokens - 1, token(tokens - 1), last),)))
    said = said_after(stopped, decode, draw)
    run.ended(stopped, said, stages)
    run.told(last_token_at)
    _, found = run.result(tokens)
    discount(draw, stopped, decode, said, ways_s=order_way_s + back_s)
    check(run, found)


@given(st.data())
def test_the_rest_of_an_answer_of_one_token_is_what_the_messages_took(data: st.DataObject) -> None:
    run = Simulation(data.draw, local=False)
    draw = run.draw
    run.at += draw()
    run.moments.ordered(run.at - run.dispatched, admit=False)
    run.at += draw.unseen()
    token_1_at, stages = run.computed()
    send_s = draw()
    run.at = last_token_at = token_1_at + send_s + draw.unseen()
    run.feed(FirstTokenMade("p0", 0, token(0), FinishReason.STOP))
    stages = PrefillStages(
        queue_s=stages.queue_s, compute_s=stages.compute_s, chunks=2, chunk_s=stages.chunk_s, send_s=send_s
    )
    run.feed(PrefillLetGo("p0", 0, 0, stages, None))
    run.feed(DecodeLetGo("d0", 0, 0, DecodeStages(intake_s=draw()), None))
    run.told(last_token_at)
    _, found = run.result(1)
    check(run, found)
    assert not [part for part in found.parts if part.where == "d0"], "nobody waited for the decode worker"


@pytest.mark.parametrize(
    "ledger",
    [
        None,
        Ledger(total_s=1.0, prefill_worker="p0", decode_worker="d0"),
        Ledger(prefill=PrefillStages(queue_s=0.0, compute_s=1.0, chunks=1), prefill_worker="p0", decode_worker="d0"),
    ],
    ids=["no ledger", "no numbers of workers", "none of the decode worker"],
)
def test_without_the_numbers_of_all_workers_there_is_no_breakdown(ledger: Ledger | None) -> None:
    result = RequestResult(index=0, arrival_s=0.0, sent_s=0.0, token_s=(1.0, 2.0), end_s=2.0, ledger=ledger)
    assert breakdown(result) is None
