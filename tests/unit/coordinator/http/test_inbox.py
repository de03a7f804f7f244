"""Do tokens gather without loss while nobody takes them?"""

import asyncio

from coordinator.http.inbox import Failure, Inbox
from coordinator.ledger import Moments
from coordinator.streams import Finished, StreamDelta, StreamEnd
from runtime.params import FinishReason
from runtime.stages import Ledger
from tests.support.asgi import delta, sampled

MOMENTS = Moments("chatcmpl-1", 0.0)


def test_deltas_of_one_choice_merge_and_those_of_others_do_not() -> None:
    inbox = Inbox()
    first, second = inbox.sink(0, MOMENTS), inbox.sink(1, MOMENTS)
    first.delta(delta(4, "a"))
    second.delta(delta(0, "x"))
    first.delta(delta(5, "b"))
    first.delta(delta(6, "c", FinishReason.STOP, stop="#"))
    merged = StreamDelta(4, (sampled(97), sampled(98), sampled(99)), "abc", Finished(FinishReason.STOP, "#"))
    assert list(inbox.take().items()) == [(0, merged), (1, delta(0, "x"))]
    assert inbox.take() == {}


def test_an_inbox_nobody_takes_from_holds_one_delta_per_choice() -> None:
    inbox = Inbox()
    for index in range(1000):
        for choice in range(2):
            inbox.sink(choice, MOMENTS).delta(delta(index, "a"))
    assert len(inbox.deltas) == 2
    assert all(len(waiting.tokens) == 1000 for waiting in inbox.take().values())


def test_the_first_failure_counts() -> None:
    inbox = Inbox()
    inbox.sink(1, MOMENTS).failed("worker_lost", "one", None)
    inbox.sink(0, MOMENTS).failed("timeout", "two", "x")
    assert inbox.failure == Failure("worker_lost", "one", None)


def test_whatever_happens_wakes_the_writer_once() -> None:
    async def scene() -> None:
        for happen in (
            lambda inbox: inbox.sink(0, MOMENTS).delta(delta(0, "a")),
            lambda inbox: inbox.sink(0, MOMENTS).failed("internal", "x", None),
            Inbox.wake,
        ):
            inbox = Inbox()
            happen(inbox)
            happen(inbox)
            async with asyncio.timeout(1):
                await inbox.wait()
            waiting = asyncio.ensure_future(inbox.wait())
            await asyncio.sleep(0)
            assert not waiting.done()
            waiting.cancel()

    asyncio.run(scene())


def test_the_numbers_of_the_workers_are_no_news() -> None:
    inbox = Inbox()
    end = StreamEnd(FinishReason.STOP, "", 1, 1, Ledger(), None)
    inbox.sink(0, MOMENTS).done(end)
    assert inbox.take() == {}
    assert inbox.failure is None
