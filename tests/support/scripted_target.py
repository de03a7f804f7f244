"""Which answers does a runner get from a server whose every moment is written down?

A `launch.evaluation.targets:Target` on a clock that the test moves.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec
from msgspec import Struct

from launch.evaluation.targets import Reply
from tests.support.handoff import VirtualClock

T = TypeVar("T")
TOKEN_S = 0.01


class Sent(Struct):
    prompt: str | list[int]
    tokens: int


@dataclass
class ScriptedTarget:
    """The first token after `ttft_s` of the request's number, then one every `TOKEN_S`."""

    clock: VirtualClock
    ttft_s: Callable[[int], float] = lambda _number: 0.05
    end: Callable[[int, Reply, float], None] = lambda _number, reply, now: reply.end(now)
    seen: list[Sent] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0

    def encode(self, prompt: str | Sequence[int], output_tokens: int) -> bytes:
        return msgspec.json.encode(Sent(prompt if isinstance(prompt, str) else list(prompt), output_tokens))

    async def ask(self, request: bytes, reply: Reply) -> None:
        number = len(self.seen)
        sent = msgspec.json.decode(request, type=Sent)
        self.seen.append(sent)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        reply.sent_at = self.clock.now()
        try:
            await self.clock.sleep(self.ttft_s(number))
            for _ in range(sent.tokens):
                reply.token_at.append(self.clock.now())
                await self.clock.sleep(TOKEN_S)
            self.end(number, reply, self.clock.now())
        except asyncio.CancelledError:
            self.cancelled.append(number)
            raise
        finally:
            self.under_way -= 1

    def notes(self) -> tuple[str, ...]:
        return ()


def in_virtual_time(clock: VirtualClock, work: Coroutine[object, object, T], seconds: float = 1000.0) -> T:
    """The result of `work`, for which the clock moves as far as it takes."""

    async def both() -> T:
        task = asyncio.get_running_loop().create_task(work)
        await clock.advance(seconds)
        assert task.done(), "it waits for more than time"
        return await task

    return asyncio.run(both())
