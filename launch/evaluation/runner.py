"""How is a workload sent to a server, each request at its time?

Open loop: a request leaves when the plan says so, whatever became of those before it. Closed loop: `concurrency` of
them are under way at any time. Every request that leaves ends in exactly one `RequestResult`, also when the run is
stopped or when its time is up.
"""

import asyncio
import contextlib
import gc
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from launch.evaluation.arrivals import Arrivals, ClosedLoop
from launch.evaluation.content import Content, prompt_ids
from launch.evaluation.results import Outcome, RequestResult
from launch.evaluation.targets import Reply, Target
from launch.evaluation.workload import Request, Workload
from runtime.clock import Clock

MOST_BYTES_AHEAD = 256 << 20
"""Of requests made before their time. What does not fit is made during the run, right after another has left."""

AT_ONCE = 64
"""Requests that are sent before others run, in a burst or by a client that is late: tokens have to get their time, and
who wants to stop has to be heard. That is some 5 ms. Of a burst that is split, the rest waits while the first answers
are read: with fewer, one of 50 requests lagged by more than `launch.evaluation.load:LAG_LIMIT_S`."""

_GC_THRESHOLDS = (20_000, 50, 1_000)


@dataclass(frozen=True)
class Watch:
    """Who wants to know how the run is doing; called on the loop's thread."""

    sent: Callable[[Request], None] = lambda _request: None
    ended: Callable[[RequestResult], None] = lambda _result: None


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Of a run, besides its load."""

    content: Content
    clock: Clock
    grace_s: float = 60.0  # after the last request has left; what is still under way then is cut off
    stop: asyncio.Event = field(default_factory=asyncio.Event)  # set from outside: end now
    bytes_ahead: int = MOST_BYTES_AHEAD


@dataclass(slots=True)
class _UnderWay:
    request: Request
    arrival_at: float
    reply: Reply


async def run_load(
    target: Target, workload: Workload, arrivals: Arrivals, conditions: Conditions, watch: Watch = Watch()
) -> list[RequestResult]:
    """The results in the order in which the requests end; times in seconds since the start of the run."""
    ahead = _Ahead(target, workload.requests, conditions)
    await ahead.fill()
    if conditions.stop.is_set():
        return []
    with _quiet_collector():
        run = _Run(target, ahead, conditions, watch)
        return await run.through(arrivals.concurrency if isinstance(arrivals, ClosedLoop) else None)


class _Ahead:
    """Requests as bytes, made before they are needed."""

    def __init__(self, target: Target, requests: Sequence[Request], conditions: Conditions) -> None:
        self._target = target
        self.total = len(requests)
        self._requests = iter(requests)
        self._conditions = conditions
        self._made: deque[tuple[Request, bytes]] = deque()
        self._bytes = 0

    async def fill(self) -> None:
        """Lets others run in between: connections have to be kept alive, and who wants to stop has to be heard."""
        stop = self._conditions.stop
        while not stop.is_set() and self._bytes < self._conditions.bytes_ahead and self._make():
            await self._conditions.clock.sleep(0.0)

    def __iter__(self) -> Iterator[tuple[Request, bytes]]:
        while self._made or self._make():
            request, body = self._made.popleft()
            self._bytes -= len(body)
            yield request, body
            if self._bytes < self._conditions.bytes_ahead:
                self._make()

    def _make(self) -> bool:
        request = next(self._requests, None)
        if request is None:
            return False
        prompt = request.text if request.text is not None else prompt_ids(request, self._conditions.content)
        body = self._target.encode(prompt, request.output_tokens)
        self._made.append((request, body))
        self._bytes += len(body)
        return True


class _Run:
    def __init__(self, target: Target, ahead: _Ahead, conditions: Conditions, watch: Watch) -> None:
        self._target = target
        self._requests = iter(ahead)
        self._clock = conditions.clock
        self._grace_s = conditions.grace_s
        self._stop = conditions.stop
        self._watch = watch
        self._under_way: dict[int, _UnderWay] = {}
        self._results: list[RequestResult] = []
        self._left = ahead.total
        self._all_sent = asyncio.Event()
        self._over = asyncio.Event()
        self._start = self._clock.now()

    async def through(self, concurrency: int | None) -> list[RequestResult]:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(work) for work in (self._load(concurrency), self._grace(), self._until_stopped())
            ]
            await self._over.wait()
            for task in tasks:
                task.cancel()
        now = self._clock.now()
        for one in list(self._under_way.values()):
            self._close(one, now)
        return self._results

    async def _load(self, concurrency: int | None) -> None:
        """Until the last request has ended; to cancel this is to cancel all that are under way."""
        async with asyncio.TaskGroup() as group:
            if concurrency is None:
                await self._open_loop(group)
            else:
                for _ in range(concurrency):
                    group.create_task(self._lane())
        self._over.set()

    async def _grace(self) -> None:
        await self._all_sent.wait()
        await self._clock.sleep(self._grace_s)
        self._over.set()

    async def _until_stopped(self) -> None:
        await self._stop.wait()
        self._over.set()

    async def _open_loop(self, group: asyncio.TaskGroup) -> None:
        unsent = 0
        for request, body in self._requests:
            due = self._start + request.arrival_s
            while (early_s := due - self._clock.now()) > 0.0 or unsent == AT_ONCE:
                await self._clock.sleep(max(early_s, 0.0))  # timers of a loop may fire up to a millisecond early
                unsent = 0
            group.create_task(self._ask(self._open(request, due), body))
            unsent += 1

    async def _lane(self) -> None:
        """One after the other; all lanes take from one queue."""
        for request, body in self._requests:
            await self._ask(self._open(request, self._clock.now()), body)

    def _open(self, request: Request, arrival_at: float) -> _UnderWay:
        one = _UnderWay(request, arrival_at, Reply(sent_at=self._clock.now()))
        self._under_way[request.index] = one
        self._left -= 1
        if self._left == 0:
            self._all_sent.set()
        self._watch.sent(request)
        return one

    async def _ask(self, one: _UnderWay, body: bytes) -> None:
        await self._target.ask(body, one.reply)
        self._close(one, self._clock.now())

    def _close(self, one: _UnderWay, now: float) -> None:
        """The one place where a result is made. Who has had no last word by now is cut off."""
        del self._under_way[one.request.index]
        reply = one.reply
        ended = reply.ended_at is not None
        result = RequestResult(
            index=one.request.index,
            arrival_s=one.arrival_at - self._start,
            sent_s=reply.sent_at - self._start,
            token_s=tuple(at - self._start for at in reply.token_at),
            end_s=(reply.ended_at if reply.ended_at is not None else now) - self._start,
            outcome=reply.outcome if ended else Outcome.CUT_OFF,
            error=reply.error if ended else "cut_off: the run ended first",
            prompt_tokens=reply.prompt_tokens,
            asked_tokens=one.request.output_tokens,
            ledger=reply.ledger,
        )
        self._results.append(result)
        self._watch.ended(result)


@contextlib.contextmanager
def _quiet_collector() -> Iterator[None]:
    """A full collection walks every object there is, and no token has a time meanwhile.

    What exists before the run is left out of collections, and those of the young are rarer; they stay on, because a
    long run makes cycles.
    """
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
