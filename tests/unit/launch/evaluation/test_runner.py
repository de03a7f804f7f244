"""Does every request leave at its time and end in one result? On a clock that the test moves."""

import asyncio
from collections.abc import Sequence
from itertools import pairwise

import pytest

from launch.evaluation.arrivals import Arrivals, ClosedLoop, Constant, Poisson, TraceClock
from launch.evaluation.content import Content
from launch.evaluation.lengths import Fixed
from launch.evaluation.load import dispatch
from launch.evaluation.results import Outcome, RequestResult
from launch.evaluation.runner import AT_ONCE, Conditions, Watch, run_load
from launch.evaluation.targets import Reply
from launch.evaluation.workload import Request, Workload, synthetic
from tests.support.handoff import VirtualClock
from tests.support.scripted_target import TOKEN_S, ScriptedTarget, in_virtual_time

CONTENT = Content(seed=1, low=100, high=200)


def load(arrivals: Arrivals, count: int, tokens: int = 3) -> Workload:
    return synthetic(Fixed(8), Fixed(tokens), arrivals, count, seed=7)


def run(
    target: ScriptedTarget, workload: Workload, arrivals: Arrivals, *, grace_s: float = 60.0, ahead: int = 1 << 20
) -> list[RequestResult]:
    conditions = Conditions(content=CONTENT, clock=target.clock, grace_s=grace_s, bytes_ahead=ahead)
    return sorted(
        in_virtual_time(target.clock, run_load(target, workload, arrivals, conditions)), key=lambda one: one.index
    )


def gaps(times: Sequence[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(times)]


@pytest.mark.parametrize("ahead", [1, 1 << 20], ids=["one request ahead", "all ahead"])
def test_an_open_loop_sends_at_the_planned_times_however_slow_the_server_is(ahead: int) -> None:
    target = ScriptedTarget(VirtualClock(), ttft_s=lambda _: 100.0)
    arrivals = Poisson(5.0)
    workload = load(arrivals, 40)
    results = run(target, workload, arrivals, grace_s=500.0, ahead=ahead)
    assert [one.sent_s for one in results] == pytest.approx([request.arrival_s for request in workload.requests])
    assert [one.arrival_s for one in results] == pytest.approx([request.arrival_s for request in workload.requests])
    assert {one.outcome for one in results} == {Outcome.COMPLETED}
    for one in results:
        assert one.token_s[0] - one.sent_s == pytest.approx(100.0)
        assert gaps(one.token_s) == pytest.approx([TOKEN_S] * 2)
        assert one.asked_tokens == 3
    assert target.most_under_way == 40


def test_prompts_are_as_long_as_asked_from_the_range_and_all_different() -> None:
    target = ScriptedTarget(VirtualClock())
    run(target, load(Constant(10.0), 20), Constant(10.0))
    prompts = [tuple(sent.prompt) for sent in target.seen if not isinstance(sent.prompt, str)]
    assert all(len(prompt) == 8 and all(100 <= number < 200 for number in prompt) for prompt in prompts)
    assert len(set(prompts)) == 20


def test_text_goes_out_as_it_is() -> None:
    target = ScriptedTarget(VirtualClock())
    request = Request(index=0, arrival_s=0.0, output_tokens=1, text="Once")
    run(target, Workload(requests=(request,)), Constant(1.0))
    assert target.seen[0].prompt == "Once"


def test_a_client_that_lags_says_so() -> None:
    """Encoding takes longer than the gaps between the requests, and nothing is made ahead."""

    class Slow(ScriptedTarget):
        def encode(self, prompt: str | Sequence[int], output_tokens: int) -> bytes:
            self.clock.pass_unnoticed(0.2)
            return super().encode(prompt, output_tokens)

    target = Slow(VirtualClock())
    results = run(target, load(Constant(10.0), 40), Constant(10.0), ahead=1)
    lag = dispatch(results)
    assert not lag.honest
    assert lag.lag_max_s is not None
    assert lag.lag_max_s > 1.0
    assert results[-1].arrival_s == pytest.approx(4.0), "the plan stays the plan"


def test_a_closed_loop_keeps_its_concurrency_and_never_exceeds_it() -> None:
    target = ScriptedTarget(VirtualClock(), ttft_s=lambda number: 0.1 * (1 + number % 3))
    results = run(target, load(ClosedLoop(4), 30), ClosedLoop(4))
    assert target.most_under_way == 4
    assert len(results) == 30
    assert all(one.arrival_s == one.sent_s for one in results)
    ends = sorted(one.end_s for one in results)
    assert [one.sent_s for one in results[:4]] == [0.0] * 4
    assert sorted(one.sent_s for one in results[4:]) == pytest.approx(ends[:26]), "one leaves when another has ended"


@pytest.mark.parametrize("arrivals", [Constant(10.0), ClosedLoop(5)], ids=["open", "closed"])
def test_what_is_under_way_after_the_grace_is_cut_off_and_cancelled(arrivals: Arrivals) -> None:
    target = ScriptedTarget(VirtualClock(), ttft_s=lambda number: 1e5 if number == 4 else 0.05)
    workload = load(arrivals, 5, tokens=2)
    results = run(target, workload, arrivals, grace_s=2.0)
    assert [one.outcome for one in results] == [Outcome.COMPLETED] * 4 + [Outcome.CUT_OFF]
    assert target.cancelled == [4]
    assert results[4].end_s == pytest.approx(workload.requests[-1].arrival_s + 2.0)
    assert results[4].error is not None


def test_tokens_of_an_answer_that_is_cut_off_are_kept() -> None:
    target = ScriptedTarget(VirtualClock())
    results = run(target, load(Constant(1.0), 1, tokens=1000), Constant(1.0), grace_s=0.1)
    assert results[0].outcome is Outcome.CUT_OFF
    assert 3 <= len(results[0].token_s) <= 7


def test_failures_and_refusals_are_results() -> None:
    def end(number: int, reply: Reply, now: float) -> None:
        errors = {0: None, 1: "internal: no", 2: "overloaded: full"}
        if number == 2:
            reply.token_at.clear()
        reply.end(now, errors[number], rejected=number == 2)

    results = run(ScriptedTarget(VirtualClock(), end=end), load(Constant(1.0), 3), Constant(1.0))
    assert [one.outcome for one in results] == [Outcome.COMPLETED, Outcome.FAILED, Outcome.REJECTED]
    assert [one.error for one in results] == [None, "internal: no", "overloaded: full"]


def test_who_got_a_token_was_not_turned_away() -> None:
    reply = Reply(sent_at=0.0, token_at=[1.0])
    reply.end(2.0, "overloaded: full", rejected=True)
    assert reply.outcome is Outcome.FAILED


def test_a_run_that_is_stopped_keeps_what_it_has() -> None:
    clock = VirtualClock()
    target = ScriptedTarget(clock, ttft_s=lambda _: 1.5)

    async def stopped() -> list[RequestResult]:
        stop = asyncio.Event()
        conditions = Conditions(content=CONTENT, clock=clock, stop=stop)
        task = asyncio.get_running_loop().create_task(
            run_load(target, load(Constant(1.0), 10), Constant(1.0), conditions)
        )
        await clock.advance(3.8)
        stop.set()
        return await task

    results = sorted(asyncio.run(stopped()), key=lambda one: one.index)
    assert [one.outcome for one in results] == [Outcome.COMPLETED, Outcome.COMPLETED, Outcome.CUT_OFF]
    assert len(target.cancelled) == 1


BURST = Workload(
    requests=tuple(Request(index=number, arrival_s=0.0, output_tokens=2, prompt_tokens=8) for number in range(200))
)


def test_a_burst_is_sent_while_it_is_made() -> None:
    target = ScriptedTarget(VirtualClock())
    unsent: list[int] = []
    watch = Watch(sent=lambda request: unsent.append(request.index - len(target.seen)))
    conditions = Conditions(content=CONTENT, clock=target.clock)
    in_virtual_time(target.clock, run_load(target, BURST, TraceClock(), conditions, watch))
    assert len(unsent) == 200
    assert max(unsent) < AT_ONCE


def test_a_stop_is_heard_amid_a_burst() -> None:
    stop = asyncio.Event()

    class Stopping(ScriptedTarget):
        async def ask(self, request: bytes, reply: Reply) -> None:
            if len(self.seen) == 3:
                stop.set()
            await super().ask(request, reply)

    target = Stopping(VirtualClock())
    conditions = Conditions(content=CONTENT, clock=target.clock, stop=stop)
    results = in_virtual_time(target.clock, run_load(target, BURST, TraceClock(), conditions))
    assert 4 <= len(results) <= 2 * AT_ONCE
    assert {one.outcome for one in results} == {Outcome.CUT_OFF}


def test_a_stop_is_heard_while_requests_are_made_ahead() -> None:
    stop = asyncio.Event()
    made: list[int] = []

    class Stopping(ScriptedTarget):
        def encode(self, prompt: str | Sequence[int], output_tokens: int) -> bytes:
            made.append(len(prompt))
            if len(made) == 3:
                stop.set()
            return super().encode(prompt, output_tokens)

    target = Stopping(VirtualClock())
    conditions = Conditions(content=CONTENT, clock=target.clock, stop=stop)
    assert in_virtual_time(target.clock, run_load(target, BURST, TraceClock(), conditions)) == []
    assert (len(made), target.seen) == (3, [])


def test_a_defect_of_the_target_is_not_taken_for_an_answer() -> None:
    def end(_number: int, _reply: Reply, _now: float) -> None:
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as caught:
        run(ScriptedTarget(VirtualClock(), end=end), load(Constant(1.0), 1), Constant(1.0))
    assert caught.group_contains(ZeroDivisionError)


def test_who_watches_hears_of_every_request_twice() -> None:
    target = ScriptedTarget(VirtualClock())
    heard: list[str] = []
    watch = Watch(
        sent=lambda request: heard.append(f"sent {request.index}"), ended=lambda one: heard.append(f"end {one.index}")
    )
    conditions = Conditions(content=CONTENT, clock=target.clock)
    in_virtual_time(target.clock, run_load(target, load(Constant(1.0), 2), Constant(1.0), conditions, watch))
    assert heard == ["sent 0", "end 0", "sent 1", "end 1"]


def test_no_requests_are_no_results() -> None:
    assert run(ScriptedTarget(VirtualClock()), Workload(requests=()), Constant(1.0)) == []
