"""Does the engine thread keep order, pass errors on and end?"""

import asyncio
import threading

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
