"""How do tokens wait for a reader who may be slow or gone?

One inbox per HTTP request. What the service says of its choices gathers here until the writer takes it; deltas of one
choice merge while it does not, so that an inbox holds no more than the answer itself. Loop thread only.
"""

import asyncio
from dataclasses import dataclass, field

from coordinator.ledger import Moments
from coordinator.streams import StreamDelta, StreamEnd
from transport.messages.client import FailureCode


@dataclass(frozen=True, slots=True)
class Failure:
    code: FailureCode
    message: str
    param: str | None


@dataclass(slots=True)
class Inbox:
    """What has happened since it was last emptied, and whether the client is still there."""

    deltas: dict[int, StreamDelta] = field(default_factory=dict)  # by choice, in order of arrival
    failure: Failure | None = None  # of any choice; the first one counts
    gone: bool = False  # the client
    quiet_too_long: bool = False  # time for a sign of life
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def sink(self, choice: int, moments: Moments) -> "ChoiceSink":
        return ChoiceSink(self, choice, moments)

    def wake(self) -> None:
        self._news.set()

    async def wait(self) -> None:
        """Until there is something new."""
        await self._news.wait()
        self._news.clear()

    def take(self) -> dict[int, StreamDelta]:
        taken, self.deltas = self.deltas, {}
        return taken


class ChoiceSink:
    """The `Sink` of one choice."""

    def __init__(self, inbox: Inbox, choice: int, moments: Moments) -> None:
        self.moments = moments
        self._inbox = inbox
        self._choice = choice

    def delta(self, delta: StreamDelta) -> None:
        waiting = self._inbox.deltas.get(self._choice)
        self._inbox.deltas[self._choice] = delta if waiting is None else _merge(waiting, delta)
        self._inbox.wake()

    def done(self, end: StreamEnd) -> None:
        """The last delta has said everything but the numbers of the workers."""

    def failed(self, code: FailureCode, message: str, param: str | None) -> None:
        if self._inbox.failure is None:
            self._inbox.failure = Failure(code, message, param)
        self._inbox.wake()


def _merge(first: StreamDelta, second: StreamDelta) -> StreamDelta:
    return StreamDelta(first.index, first.tokens + second.tokens, first.text + second.text, second.finish)
