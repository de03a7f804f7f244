"""Does the engine thread keep order, pass errors on and end?"""

import asyncio
import threading
import time

import pytest

from engine.thread import EngineThread


def test_calls_run_in_order_on_one_other_thread() -> None:
    seen: list[tuple[int, int]] = []

    def note(i: int) -> int:
        seen.append((i, threading.get_ident()))
        return 10 * i

    async def main() -> list[int]:
        thread = EngineThread()
        try:
            return await asyncio.gather(*(thread.run(note, i) for i in range(5)))
        finally:
            thread.close()

    assert asyncio.run(main()) == [0, 10, 20, 30, 40]
    assert [i for i, _ in seen] == [0, 1, 2, 3, 4]
    assert {ident for _, ident in seen} != {threading.get_ident()}
    assert len({ident for _, ident in seen}) == 1


def test_an_exception_reaches_the_caller() -> None:
    async def main() -> None:
        thread = EngineThread()
        try:
            with pytest.raises(ZeroDivisionError):
                await thread.run(lambda: 1 // 0)
        finally:
            thread.close()

    asyncio.run(main())


def test_caught_up_waits_until_earlier_callers_have_gone_on() -> None:
    async def main() -> list[str]:
        thread, happened = EngineThread(), list[str]()

        async def call(name: str) -> None:
            await thread.run(time.sleep, 0.01)
            happened.append(name)

        calls = [asyncio.ensure_future(call(name)) for name in ("first", "second")]
        await asyncio.sleep(0)
        await thread.caught_up()
        happened.append("caught up")
        await asyncio.gather(*calls)
        await thread.caught_up()  # nobody waits: at once
        thread.close()
        return happened

    assert asyncio.run(main()) == ["first", "second", "caught up"]


def test_close_waits_for_the_running_call_and_drops_the_others() -> None:
    started, may_end, ran = threading.Event(), threading.Event(), []

    def first() -> None:
        started.set()
        assert may_end.wait(10)
        ran.append("first")

    async def main() -> None:
        thread = EngineThread()
        running = asyncio.ensure_future(thread.run(first))
        waiting = asyncio.ensure_future(thread.run(ran.append, "second"))
        await asyncio.to_thread(started.wait, 10)
        closing = asyncio.ensure_future(asyncio.to_thread(thread.close))
        with pytest.raises(asyncio.CancelledError):
            await waiting
        may_end.set()
        await asyncio.gather(running, closing)

    asyncio.run(main())
    assert ran == ["first"]


def test_an_outcome_is_awaited_beside_the_engine_thread() -> None:
    """Calls go on meanwhile, and whoever wants them caught up does not wait for it."""
    may_end = threading.Event()

    async def main() -> list[str]:
        thread, happened = EngineThread(), list[str]()
        first, second = thread.outcome(may_end.wait, 10), thread.outcome(happened.append, "behind it")
        await thread.run(happened.append, "call")
        await thread.caught_up()
        may_end.set()
        assert await first is True
        await second
        thread.close()
        return happened

    assert asyncio.run(main()) == ["call", "behind it"]


def test_an_outcome_may_be_an_exception() -> None:
    async def main() -> None:
        thread = EngineThread()
        try:
            with pytest.raises(ZeroDivisionError):
                await thread.outcome(lambda: 1 // 0)
        finally:
            thread.close()

    asyncio.run(main())
