"""How does a test play one HTTP request for generation between a scripted service and a scripted client?"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from coordinator.http.counters import HttpCounters
from coordinator.http.errors import ApiError
from coordinator.http.front import LIMITS
from coordinator.http.generation import Generation, OpenAnswers, Patience
from tests.support.answers import chat, completion
from tests.support.asgi import Answer, Client, FakeService, events, prepared, settle
from tests.support.scripted_server import ManualClock

PATIENCE = Patience(keep_alive_s=15.0, stall_s=30.0)


class Stage:
    """One generation between a scripted service and a scripted client."""

    def __init__(self, room: int = 1000, seed: int | None = None, *, texts: bool = False, **fields: Any) -> None:
        self.clock = ManualClock()
        self.open = OpenAnswers(PATIENCE, self.clock)
        self.counters = HttpCounters(limits=LIMITS)
        self.service = FakeService(room=room)
        self.client = Client()
        answer = completion(**fields) if texts else chat(**fields)
        self.generation = Generation(
            self.service.as_service(), [prepared(seed=seed)], answer, self.open, self.counters, 0.0
        )
        self.running = asyncio.ensure_future(self.client.ask(self.generation))

    def tick(self, seconds: float) -> None:
        self.clock.time += seconds
        self.open.tick(self.clock.time)

    async def end(self) -> Answer:
        """Its end, after which nothing of it is left."""
        try:
            async with asyncio.timeout(2):
                answer = await self.running
        finally:
            await settle()
            assert len(self.open) == 0
            assert self.counters.open_streams == 0
            others = asyncio.all_tasks() - {asyncio.current_task()}
            assert not others, "somebody still watches the client"
        return answer

    async def failure(self) -> ApiError:
        with pytest.raises(ApiError) as error:
            await self.end()
        assert self.client.answer.messages == [], "whoever raises leaves the status to the gate"
        return error.value

    @property
    def events(self) -> list[Any]:
        return events(self.client.answer.body)


def scene(play: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """A test that runs on a loop of its own."""

    def test() -> None:
        asyncio.run(play())  # type: ignore[arg-type]  # a coroutine

    test.__name__ = play.__name__
    return test


def contents(said: list[Any], index: int = 0) -> list[str]:
    entries = [event["choices"][0] for event in said if isinstance(event, dict) and event.get("choices")]
    return [entry["delta"]["content"] for entry in entries if entry["index"] == index and entry["delta"]]
