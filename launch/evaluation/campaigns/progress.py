"""How far has a campaign got, and how long will it take?

Pure. Seconds are those of the runs themselves (`Run.seconds`); what lies between two runs is in no estimate.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from msgspec import Struct
from msgspec.structs import replace

from launch.evaluation.arrivals import Arrivals, ClosedLoop, TraceClock, TraceRate
from launch.evaluation.study import Run


class Step(Struct, frozen=True, kw_only=True):
    """One run of a campaign, before it starts and again when it has ended."""

    campaign: str
    number: int  # from 1
    at_most: int  # a search may end before
    system: str
    arrivals: Arrivals
    requests: int
    remaining_s: float | None  # of the campaign, at most; None: nothing to judge by yet
    run: Run | None = None  # None: it starts now


Progress = Callable[[Step], None]


@dataclass
class Course:
    """Of one campaign: the seconds of its runs, as planned and as they were."""

    campaign: str
    rest: list[float | None]  # planned, of the runs to come; None: a closed loop has no plan
    done: list[tuple[float | None, float]] = field(default_factory=list)  # planned, as it was

    def step(self, system: str, arrivals: Arrivals, requests: int) -> Step:
        return Step(
            campaign=self.campaign,
            number=len(self.done) + 1,
            at_most=len(self.done) + len(self.rest),
            system=system,
            arrivals=arrivals,
            requests=requests,
            remaining_s=self.remaining_s(),
        )

    def finish(self, seconds: float) -> None:
        self.done.append((self.rest.pop(0), seconds))

    def finished(self, step: Step, run: Run) -> Step:
        return replace(step, run=run, remaining_s=self.remaining_s())

    def remaining_s(self) -> float | None:
        """The plan, stretched as much as the runs so far were; without a plan, as long as they were in the mean."""
        planned = sum(plan for plan, _ in self.done if plan is not None)
        stretch = sum(was for plan, was in self.done if plan is not None) / planned if planned else 1.0
        typical = sum(was for _, was in self.done) / len(self.done) if self.done else None
        seconds = [plan * stretch if plan is not None else typical for plan in self.rest]
        known = [one for one in seconds if one is not None]
        return sum(known) if len(known) == len(seconds) else None


def load_in_words(arrivals: Arrivals) -> str:
    match arrivals:
        case ClosedLoop(concurrency=concurrency):
            return f"{concurrency} request{'s' if concurrency > 1 else ''} at a time"
        case TraceClock(speed=speed):
            return f"the trace at {speed:.4g} times its speed"
        case TraceRate(rate_per_s=rate):
            return f"{rate:.4g} requests/s on the trace's clock"
        case _:
            return f"{arrivals.rate_per_s:.4g} requests/s"


def in_words(step: Step) -> str:
    """One line for the terminal."""
    text = f"{step.campaign} {step.number}/{step.at_most}: {step.system}, {load_in_words(step.arrivals)}"
    if step.run is not None:
        return text + ": " + _outcome(step.run)
    text += f", {step.requests} requests"
    return text if step.remaining_s is None else f"{text}; at most {_duration(step.remaining_s)} to go"


def _outcome(run: Run) -> str:
    parts = []
    if run.attainments is not None and (share := run.attainments.every.share()) is not None:
        parts.append(f"attainment {100 * share.value:.1f} %")
    for name, summary in (("TTFT", run.measures.ttft), ("TPOT", run.measures.tpot)):
        if (median := summary.percentiles.get("p50")) is not None:
            parts.append(f"median {name} {1000 * median.value:.3g} ms")
    if run.saturation is not None and run.saturation.complaint is not None:
        parts.append("over-saturated")
    if run.dispatch is not None and run.dispatch.complaint is not None:
        parts.append("the client lagged: it does not count")
    return ", ".join(parts) or "no answer"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
