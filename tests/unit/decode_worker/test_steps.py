"""Is the next decode step begun in time, with the right rows, and does nobody lose a token or a page by it?

The real worker, with an engine and a thread on which the test ends every step (tests/support/device.py), and a clock
that the test moves.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from engine.fake import fake_tokens
from runtime.flight import Step
from runtime.params import FinishReason
from tests.support.device import Device, ScriptedThread, WatchedPages
from tests.support.handoff import VirtualClock, turns
from tests.support.kv_pair import LAYOUT, Pair, pair
from tests.unit.decode_worker.test_worker import OURS, PAGES, THEIRS, Bench, run_bench


class Scene(Bench):
    """A worker whose device ends a step when the test says so."""

    engine: Device
    thread: ScriptedThread

    def __init__(self, ports: Pair) -> None:
        self.clock = VirtualClock()
        super().__init__(ports, Device(LAYOUT, PAGES, weight=OURS), ScriptedThread(), self.clock)
        self.worker.pool = WatchedPages(self.engine)

    async def end_step(self) -> None:
        self.thread.end_step()
        await turns()

    async def end_all(self) -> None:
        while self.thread.is_waiting:
            await self.end_step()

    @property
    def follows(self) -> list[list[int | None]]:
        """Of each row of each step."""
        return [[row.follows for row in rows] for rows in self.engine.begun]


def play(main: Callable[[Scene], Awaitable[None]]) -> None:
    run_bench(Scene, main)


def answer_of(request_id: int, tokens: int, count: int, weight: int = OURS) -> list[int]:
    prompt = range(request_id, request_id + tokens)
    return fake_tokens(prompt, count, prefill_weight=weight, decode_weight=OURS)


def new_token(answer: list[int], earliest: int) -> int:
    """The place, from `earliest` on, of a token that the answer did not have before."""
    return next(i for i in range(earliest, len(answer)) if answer[i] not in answer[:i])


# --- two steps under way ---------------------------------------------------------------------------------------------


def test_a_step_is_begun_before_the_tokens_of_the_one_before_it_are_known() -> None:
    async def main(scene: Scene) -> None:
        answer = scene.serve(1, tokens=4, max_tokens=5)
        await turns()
        assert scene.follows == [[None], [None], [0]], "the prompt, token 2, and token 3 behind it"
        assert scene.said.tokens[1] == answer[:1]
        await scene.end_step()
        assert scene.follows == [[None], [None], [0], [0]]
        assert scene.said.tokens[1] == answer[:2]
        await scene.end_step()
        assert scene.follows == [[None], [None], [0], [0], [0]]
        await scene.end_step()
        assert len(scene.follows) == 5, "the step under way makes the last token: there is none behind it"
        await scene.end_all()
        assert scene.said.tokens[1] == answer
        assert scene.said.finishes[1] is FinishReason.LENGTH
        stages = scene.said.released[1].stages
        assert stages is not None
        assert stages.steps == 4

    play(main)


def test_rows_find_their_tokens_while_others_leave_and_join() -> None:
    async def main(scene: Scene) -> None:
        answers = {i: scene.serve(i, tokens=2, max_tokens=n) for i, n in ((1, 3), (2, 6), (3, 4), (4, 7))}
        await turns()
        assert scene.follows[1:] == [[None] * 4, [0, 1, 2, 3]]
        await scene.end_step()
        assert scene.follows[3] == [1, 2, 3], "request 1 ends with the step before"
        answers[100] = scene.hand_off(100, tokens=9, max_tokens=4)
        await turns(200)
        await scene.end_step()
        assert scene.follows[4] == [0, 2, None]
        await scene.end_all()
        assert scene.said.tokens == answers

    play(main)


def test_a_choice_that_reads_its_output_waits_for_it() -> None:
    async def main(scene: Scene) -> None:
        answer = scene.serve(1, tokens=4, max_tokens=4, presence_penalty=0.5)
        await turns()
        for steps in (2, 3, 4):
            assert len(scene.follows) == steps
            await scene.end_step()
        assert scene.said.tokens[1] == answer
        assert scene.follows == [[None]] * 4

    play(main)


def test_one_row_that_reads_its_output_holds_up_the_step_that_all_are_in() -> None:
    async def main(scene: Scene) -> None:
        answers = {1: scene.serve(1, tokens=2, max_tokens=3, repetition_penalty=1.1)}
        answers[2] = scene.serve(2, tokens=2, max_tokens=6)
        await turns()
        assert scene.follows == [[None, None]] * 2
        await scene.end_step()
        assert scene.follows[2:] == [[None, None], [1]], "behind its last step nobody reads"
        await scene.end_all()
        assert scene.said.tokens == answers

    play(main)


def test_a_prompt_that_waits_is_in_the_next_step_and_so_that_is_not_begun_ahead() -> None:
    async def main(scene: Scene) -> None:
        stream = scene.serve(1, tokens=4, max_tokens=9)
        await turns()
        await scene.end_step()
        prompt = scene.serve(2, tokens=14, max_tokens=2)
        await scene.end_step()
        assert len(scene.follows) == 4
        await scene.end_step()
        fed = [[len(row.token_ids) for row in rows] for rows in scene.engine.begun]
        assert fed[4:] == [[1, 6], [1, 6], [1, 2], [1, 1], [1]]
        assert scene.follows[4:] == [[None, None]] * 4 + [[0]]
        await scene.end_all()
        assert (scene.said.tokens[1], scene.said.tokens[2]) == (stream, prompt)

    play(main)


# --- found out one step late -----------------------------------------------------------------------------------------


def test_a_stopping_token_is_told_at_once_and_the_pages_are_let_go_one_step_later() -> None:
    whole = answer_of(1, 4, 12)
    stop = new_token(whole, 2)

    async def main(scene: Scene) -> None:
        scene.serve(1, tokens=4, max_tokens=12, stop_token_ids=(whole[stop],))
        await turns()
        for _ in range(stop):
            assert 1 not in scene.said.finishes
            await scene.end_step()
        assert scene.said.finishes[1] is FinishReason.STOP
        assert scene.said.tokens[1] == whole[: stop + 1]
        assert scene.engine.busy_pages, "the step behind it is under way"
        assert not scene.said.released
        assert scene.worker.pool.reserved_pages > 0
        scene.cancel(1)  # too late
        answer = scene.serve(2, tokens=3)
        await scene.end_all()
        released = scene.said.released[1]
        assert released.error is None
        assert released.stages is not None
        assert released.stages.steps == stop
        assert scene.said.tokens == {1: whole[: stop + 1], 2: answer}

    play(main)


def test_a_cancel_at_any_moment() -> None:
    """After so many turns of the loop, in which the device ends a step every now and then."""

    def cancelled_after(moment: int) -> None:
        async def main(scene: Scene) -> None:
            answers = [scene.serve(1, tokens=12, max_tokens=8), scene.serve(2, tokens=3, max_tokens=6)]
            for turn in range(400):
                if turn == moment:
                    scene.cancel(1)
                await asyncio.sleep(0)
                if scene.thread.is_waiting and turn % 7 == 0:
                    scene.thread.end_step()
            made = scene.said.tokens.get(1, [])
            assert made == answers[0][: len(made)]
            assert scene.said.tokens[2] == answers[1]
            assert scene.said.released.keys() == {1, 2}
            seen.add(len(made))

        play(main)

    seen: set[int] = set()
    for moment in range(0, 90, 2):
        cancelled_after(moment)
    assert len(seen) > 5, "the moments were all alike"


def test_a_row_without_a_token_ends_alone() -> None:
    async def main(scene: Scene) -> None:
        other = scene.serve(1, tokens=2, max_tokens=8)
        await turns()
        scene.hand_off(100, tokens=5, max_tokens=8, grammar="start: /a/")
        await turns(200)
        await scene.end_all()
        assert 100 not in scene.said.tokens
        assert "knows no grammars" in (scene.said.released[100].error or "")
        assert scene.said.tokens[1] == other

    play(main)


def test_a_device_that_is_lost_ends_the_worker() -> None:
    async def main() -> None:
        ports = pair()
        scene = Scene(ports)
        hello: Any = None
        serving = asyncio.create_task(scene.worker.run(hello, asyncio.Event()))
        await scene.said.welcomed.wait()
        scene.serve(1, tokens=4, max_tokens=9)
        await turns()
        scene.engine.lost = RuntimeError("CUDA error: an illegal memory access was encountered")
        scene.thread.end_step()
        with pytest.raises(ExceptionGroup) as raised:
            await serving
        assert raised.group_contains(RuntimeError, match="illegal memory access")
        ports.close()

    asyncio.run(main())


# --- when ------------------------------------------------------------------------------------------------------------


def test_the_next_step_is_planned_late_in_the_one_under_way_or_when_that_has_ended() -> None:
    async def main(scene: Scene) -> None:
        clock, begun = scene.clock, scene.engine.begun
        answers = {1: scene.serve(1, tokens=4, max_tokens=20)}
        await turns()
        assert len(begun) == 3
        await clock.advance(10)
        await scene.end_step()  # it took 10 s; the step behind it starts now
        answers[100] = scene.hand_off(100, tokens=5, max_tokens=20)
        await turns(200)
        await clock.advance(6.9)
        assert len(begun) == 3
        await clock.advance(0.2)
        assert scene.follows[3:] == [[0, None]], "who came in the first part of a step is in the next one"
        answers[101] = scene.hand_off(101, tokens=5, max_tokens=20)
        await turns(200)
        await clock.advance(2.9)
        await scene.end_step()  # it, too, took 10 s
        await clock.advance(6.9)
        assert len(begun) == 4
        await clock.advance(0.2)
        assert scene.follows[4:] == [[0, 1, None]], "who came later is in the one after that"
        await clock.advance(2.9)
        await scene.end_step()
        await clock.advance(1)
        await scene.end_step()  # sooner than its successor was planned
        assert scene.follows[5:] == [[None] * 3], "and so the tokens were there"
        steps = [event for event in scene.worker.flight.since(1e6, clock.now()).events if isinstance(event, Step)]
        assert [round(step.duration_s, 6) for step in steps] == [0, 10, 10, 10, 1], "steps do not overlap"
        assert [step.joined for step in steps[3:]] == [(100,), (101,)]
        await clock.advance(0.8)
        assert len(begun) == 7
        await scene.end_all()
        for _ in range(40):
            await clock.advance(10)
            await scene.end_all()
        assert scene.said.tokens == answers
        stages = scene.said.released[100].stages
        assert stages is not None
        assert stages.join_s == pytest.approx(7, abs=0.1)  # verified -> begun
        assert stages.first_step_s == pytest.approx(13, abs=0.1)  # begun -> tokens: behind the step under way

    play(main)


# --- in any order ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_any_order_of_events_gives_the_same_answers(seed: int) -> None:
    play_in_some_order(seed)


def test_the_worker_was_ahead_of_the_device_in_them() -> None:
    assert sum(play_in_some_order(seed) for seed in range(10)) > 50


def play_in_some_order(seed: int) -> int:
    """Requests come, are handed off, stop, are cancelled; the device ends steps and time passes whenever it likes.

    Returns:
        How many rows followed a token that was not known.
    """
    chance = random.Random(seed)
    ahead = 0

    async def main(scene: Scene) -> None:
        nonlocal ahead
        expected: dict[int, list[int]] = {}
        coming = [(number, *chance.choice(KINDS)) for number in range(1, 9)]
        cancelled: set[int] = set()
        for _ in range(600):
            match chance.randrange(12):
                case 0 if coming and scene.worker.pool.free_pages > 10:
                    number, is_local, sampling = coming.pop()
                    tokens, count = chance.randrange(1, 16), chance.randrange(2, 12)
                    request_id = number if is_local else 100 + number
                    answer = answer_of(request_id, tokens, count, OURS if is_local else THEIRS)
                    stop = chance.choice([(), (chance.choice(answer),)])
                    if not is_local and answer[0] in stop:
                        stop = ()  # the coordinator would hand nothing off
                    ask: Any = scene.serve if is_local else scene.hand_off
                    ask(request_id, tokens, count, stop_token_ids=stop, **sampling)
                    end = next((i + 1 for i, token in enumerate(answer) if token in stop), count)
                    expected[request_id] = answer[0 if is_local else 1 : end]
                case 1 if expected and chance.random() < 0.2:
                    scene.cancel(request_id := chance.choice(list(expected)))
                    cancelled.add(request_id)
                case 2:
                    await scene.clock.advance(chance.random())
                case 3 | 4 if scene.thread.is_waiting:
                    scene.thread.end_step()
                case _:
                    await turns(chance.randrange(1, 9))
        while scene.said.released.keys() != expected.keys():
            await turns(50)
            await scene.clock.advance(1)
            await scene.end_all()
        for request_id, answer in expected.items():
            made = scene.said.tokens.get(request_id, [])
            assert made == (answer[: len(made)] if request_id in cancelled else answer)
        ahead = sum(row.follows is not None for rows in scene.engine.begun for row in rows)

    play(main)
    return ahead


KINDS: tuple[tuple[bool, dict[str, Any]], ...] = (
    (True, {}),
    (False, {}),
    (False, {"logprobs": 1}),
    (True, {"top_p": 0.9}),
    (False, {"frequency_penalty": 0.5}),
)
