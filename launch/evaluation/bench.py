"""How does one load become one run of a study?

`Bench.run_load` is what campaigns call: it opens the system, primes it, runs the load, writes the requests down at once
and sums them up. It owns the runs of the study and the notes on them.
"""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from launch.evaluation.arrivals import Arrivals, ClosedLoop
from launch.evaluation.campaigns.progress import Step
from launch.evaluation.content import Content
from launch.evaluation.live import LiveDisplay
from launch.evaluation.opening import Opened, Systems
from launch.evaluation.recording import Recording
from launch.evaluation.results import Outcome, RequestResult
from launch.evaluation.runner import Conditions, Watch, run_load
from launch.evaluation.slo import Slo
from launch.evaluation.study import OF_OTHER_LOADS, Run, SloScale, System
from launch.evaluation.summary import deviations, slo_scale, summarise
from launch.evaluation.workload import Request, Workload
from runtime.clock import Clock

_FIRST_PRIMING = 1 << 31
"""Requests of no run have numbers of their own, so that their prompts are in none."""

_RUN_ID_CHARS = 60


class Stopped(Exception):
    """The person at the terminal wants no more; what was measured is kept."""


class NotServed(Exception):
    """Not even the first requests were answered."""


class SystemLost(Exception):
    """A server does not answer any more: what follows would measure how fast a connection is refused."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The same for every run of a study."""

    seed: int
    slo: Slo | None = None
    slo_factors: tuple[float, ...] = ()  # by so many times the SLO each run is judged, too
    warm_up_s: float = 0.0
    cool_down_s: float = 0.0
    grace_s: float = 60.0
    priming: int = 2  # requests that a fresh system gets before its first run, which are in no result


@dataclass
class Bench:
    systems: Systems
    recording: Recording
    rules: Rules
    ids: tuple[int, int]  # for random prompts, the same for all systems
    clock: Clock
    display: LiveDisplay
    stop: asyncio.Event
    saved: Callable[[], None]  # writes the study so far, after each run
    runs: list[Run] = field(default_factory=list)
    slo_scales: list[SloScale] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # on the runs
    _primed: dict[str, Opened] = field(default_factory=dict)
    _primings: int = 0

    @property
    def measured(self) -> tuple[System, ...]:
        return tuple(opened.system for opened in self._primed.values())

    def all_notes(self) -> tuple[str, ...]:
        """On the runs, and on how each server was asked and counted."""
        of_systems = (
            f"{name}: {note}"
            for name, opened in self._primed.items()
            for note in (*opened.notes, *opened.target.notes())
        )
        return (*of_systems, *self.notes)

    async def run_load(
        self, system: str, workload: Workload, arrivals: Arrivals, purpose: str
    ) -> tuple[Run, list[RequestResult]]:
        """
        Raises:
            Stopped: now or while it ran; what was measured is among `runs`.
            NotServed: a fresh system does not answer.
            SystemLost: one that did does not any more; what was seen of that is among `runs`.
            ValueError: warm-up and cool-down would leave no request.
        """
        if self.stop.is_set():
            raise Stopped
        self._check_window(workload, arrivals)
        opened = await self.systems.use(system)
        if self._primed.get(system) is not opened:
            await self._prime(opened, workload)
            self._primed[system] = opened
        run_id = self._run_id(system, purpose)
        title = f"{run_id.partition('-')[0]} {system} {_load(arrivals)}"
        watch = self.display.begin(title, len(workload.requests))
        drawing = asyncio.get_running_loop().create_task(self.display.draw())
        try:
            results = await self._ask(opened, workload, arrivals, watch)
        finally:
            drawing.cancel()
            self.display.end(title)
        results.sort(key=lambda result: result.index)
        run = self._write_down(run_id, system, purpose, workload, arrivals, results)
        if self.stop.is_set():
            raise Stopped
        if results and all(_unconnected(result) for result in results):
            raise SystemLost(f"{system} is lost: {results[-1].error}")
        return run, results

    def announce(self, step: Step) -> None:
        """What a campaign is about to do."""
        if step.run is None:
            left = "" if step.remaining_s is None else f", {step.remaining_s:.0f} s left at most"
            self.display.say(f"{step.campaign}: run {step.number} of {step.at_most} at most{left}")

    def _check_window(self, workload: Workload, arrivals: Arrivals) -> None:
        left_out_s = self.rules.warm_up_s + self.rules.cool_down_s
        if isinstance(arrivals, ClosedLoop) or not left_out_s or not workload.requests:
            return
        span_s = workload.requests[-1].arrival_s - workload.requests[0].arrival_s
        if span_s <= left_out_s:
            raise ValueError(
                f"all requests arrive within {span_s:.3g} s, and {left_out_s:g} s of warm-up and cool-down leave none"
            )

    async def _prime(self, opened: Opened, workload: Workload) -> None:
        """Requests as long as those that follow: first ones pay for allocations, connections and code."""
        models = workload.requests[: self.rules.priming]
        requests = [self._priming_request(model) for model in models]
        if not requests:
            return
        self.display.say(f"priming {opened.system.name} with {len(requests)} requests that are in no result")
        results = await self._ask(opened, Workload(requests=tuple(requests)), ClosedLoop(1), Watch())
        if self.stop.is_set():
            raise Stopped
        if all(result.outcome is not Outcome.COMPLETED for result in results):
            raise NotServed(f"{opened.system.name} does not answer: {results[0].error}")

    async def _ask(self, opened: Opened, workload: Workload, arrivals: Arrivals, watch: Watch) -> list[RequestResult]:
        content = Content(seed=self.rules.seed, low=self.ids[0], high=self.ids[1])
        conditions = Conditions(content=content, clock=self.clock, grace_s=self.rules.grace_s, stop=self.stop)
        try:
            return await run_load(opened.target, workload, arrivals, conditions, watch)
        except BaseExceptionGroup as group:
            raise _alone(group) from None

    def _priming_request(self, model: Request) -> Request:
        index = _FIRST_PRIMING + self._primings
        self._primings += 1
        text = None if model.text is None else f"Request {index}. Once upon a time"
        return Request(
            index=index, arrival_s=0.0, prompt_tokens=model.prompt_tokens, output_tokens=model.output_tokens, text=text
        )

    def _write_down(
        self,
        run_id: str,
        system: str,
        purpose: str,
        workload: Workload,
        arrivals: Arrivals,
        results: list[RequestResult],
    ) -> Run:
        self.recording.requests(run_id, results)
        rules = self.rules
        run = summarise(
            run_id,
            system,
            purpose,
            requests=workload.requests,
            arrivals=arrivals,
            results=results,
            slo=rules.slo,
            warm_up_s=rules.warm_up_s,
            cool_down_s=rules.cool_down_s,
            stopped=self.stop.is_set(),
        )
        self.runs.append(run)
        if rules.slo is not None and rules.slo_factors and purpose not in OF_OTHER_LOADS:
            self.slo_scales.append(slo_scale(run, results, rules.slo, rules.slo_factors))
        self.notes += deviations(run, results, len(workload.requests), rules.warm_up_s, rules.cool_down_s)
        self.saved()
        return run

    def _run_id(self, system: str, purpose: str) -> str:
        words = re.sub(r"[^A-Za-z0-9.]+", "-", f"{system}-{purpose}").strip("-")
        return f"{len(self.runs) + 1:03d}-{words}"[:_RUN_ID_CHARS].rstrip("-")


def _unconnected(result: RequestResult) -> bool:
    return result.outcome is Outcome.FAILED and (result.error or "").startswith("connection:")


def _alone(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error itself, where groups of tasks have wrapped a single one."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _load(arrivals: Arrivals) -> str:
    if isinstance(arrivals, ClosedLoop):
        return f"closed loop of {arrivals.concurrency}"
    rate: float | None = getattr(arrivals, "rate_per_s", None)
    return f"{rate:.4g} requests/s" if rate is not None else f"trace x {getattr(arrivals, 'speed', 1.0):.4g}"
