"""What time is it, and how does one wait?

Time is monotonic and injected: pure modules take `now` as an argument, shells take a `Clock`. Processes exchange
durations, never timestamps, because two monotonic clocks share no origin. This is the only module that may sleep.
"""

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Seconds since an arbitrary origin; never goes back."""
        ...

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
