"""What does one see of a run while it goes on?

A line that is drawn twice a second from the client's own loop: a thread that draws would hold up the tokens whenever it
likes. Without a terminal there are two plain lines per run.
"""

from collections import Counter, deque

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from launch.evaluation.intervals import effective_trials, percentile, wilson
from launch.evaluation.measures import latencies
from launch.evaluation.results import Outcome, RequestResult
from launch.evaluation.runner import Watch
from launch.evaluation.slo import Slo, judge
from launch.evaluation.workload import Request
from runtime.clock import Clock

_EVERY_S = 0.5
_RECENT = 200  # requests that live percentiles are of
_RECENT_GAPS = 2000


class RunState:
    """What is known of a run so far."""

    def __init__(self, slo: Slo | None) -> None:
        self._slo = slo
        self._met: list[bool] = []
        self._ttft_s: deque[float] = deque(maxlen=_RECENT)
        self._gaps_s: deque[float] = deque(maxlen=_RECENT_GAPS)
        self._outcomes: Counter[Outcome] = Counter()
        self.sent = 0
        self.ended = 0

    def on_sent(self, _request: Request) -> None:
        self.sent += 1

    def on_end(self, result: RequestResult) -> None:
        self.ended += 1
        self._outcomes[result.outcome] += 1
        if self._slo is not None:
            self._met.append(judge(result, self._slo).every)
        if result.outcome is Outcome.COMPLETED:
            seen = latencies(result)
            self._ttft_s += [seen.ttft_s] if seen.ttft_s is not None else []
            self._gaps_s += seen.gaps_s

    def words(self) -> str:
        parts = [f"{self.sent} sent", f"{self.sent - self.ended} in flight", f"{self.ended} ended"]
        parts += [f"{count} {outcome}" for outcome, count in self._outcomes.items() if outcome is not Outcome.COMPLETED]
        if self._met:
            effective = effective_trials(self._met)
            if (share := wilson(sum(self._met) / len(self._met) * effective, effective)) is not None:
                interval = f" ({100 * (share.low or 0.0):.0f}-{100 * (share.high or 1.0):.0f})"
                parts.append(f"attainment {100 * share.value:.0f} %{interval}")
        for name, values in (("TTFT", self._ttft_s), ("ITL", self._gaps_s)):
            p50, p99 = percentile(list(values), 50), percentile(list(values), 99)
            if p50 is not None and p99 is not None:
                parts.append(f"{name} {p50.value * 1e3:.4g}/{p99.value * 1e3:.4g} ms")
        return ", ".join(parts)


class LiveDisplay:
    """Of all runs of a study, one after the other."""

    def __init__(self, console: Console, clock: Clock, slo: Slo | None, *, quiet: bool) -> None:
        self._console = console
        self._clock = clock
        self._slo = slo
        self._quiet = quiet
        self._state = RunState(slo)
        self._task: TaskID | None = None
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=16),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[words]}", markup=False),
            console=console,
            auto_refresh=False,
            transient=True,
            disable=quiet or not console.is_terminal,
        )

    def begin(self, title: str, requests: int) -> Watch:
        self._state = RunState(self._slo)
        if self._progress.disable:
            self.say(f"{title}: {requests} requests")
        else:
            self._progress.start()
            self._task = self._progress.add_task(title, total=requests, words="")
        return Watch(sent=self._state.on_sent, ended=self._state.on_end)

    async def draw(self) -> None:
        """Until it is cancelled."""
        while not self._progress.disable:
            self._refresh()
            await self._clock.sleep(_EVERY_S)

    def end(self, title: str) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._progress.stop()
            self._task = None
        self.say(f"{title}: {self._state.words()}")

    def say(self, text: str) -> None:
        if not self._quiet:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _refresh(self) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=self._state.ended, words=self._state.words())
            self._progress.refresh()
