"""How are numbers written for people?

Pure. Three digits that count, a unit, and the interval in parentheses; what there is nothing of is a dash.
"""

import math

from launch.evaluation.arrivals import Arrivals, ClosedLoop, Constant, Gamma, Poisson, TraceClock, TraceRate
from launch.evaluation.intervals import Estimate
from launch.evaluation.slo import Attainment, Slo

NONE = "-"
LONGEST_NAME = 34


def number(value: float | None) -> str:
    """Three digits that count, without an exponent where that stays short."""
    if value is None or not math.isfinite(value):
        return NONE
    size = abs(value)
    if size >= 1e7 or 0.0 < size < 1e-4:
        return f"{value:.3g}"
    if size >= 999.5:
        return f"{value:,.0f}"
    if size == 0.0:
        return "0"
    digits = 2 - math.floor(math.log10(float(f"{size:.2e}")))
    return f"{value:.{max(digits, 0)}f}"


def interval(low: float | None, high: float | None) -> str:
    """ "(1.2 to 3.4)"; a side that is not known is a question mark, and nothing is said where neither is known."""
    if low is None and high is None:
        return ""
    return f"({'?' if low is None else number(low)} to {'?' if high is None else number(high)})"


def estimate(value: Estimate | None, factor: float = 1.0) -> str:
    if value is None:
        return NONE
    low = value.low * factor if value.low is not None else None
    high = value.high * factor if value.high is not None else None
    return f"{number(value.value * factor)} {interval(low, high)}".rstrip()


def planned(value: float | None) -> str:
    """What somebody asked for, as it was asked."""
    return NONE if value is None else f"{value:,.5g}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return NONE
    if abs(seconds) < 1.0:
        return f"{number(seconds * 1000.0)} ms"
    return f"{number(seconds)} s"


def share(attainment: Attainment | None) -> str:
    """In percent, with Wilson's interval."""
    return estimate(attainment.share() if attainment is not None else None, 100.0)


def load(arrivals: Arrivals, rate_per_s: float | None) -> str:
    """What a run was given, in few words."""
    match arrivals:
        case ClosedLoop(concurrency=concurrency):
            return f"{concurrency} at a time"
        case Poisson():
            kind = "Poisson"
        case Gamma(burstiness=burstiness):
            kind = f"gamma, burstiness {burstiness:g}"
        case Constant():
            kind = "even gaps"
        case TraceClock(speed=speed):
            kind = f"as recorded, {planned(speed)} x as fast"
        case TraceRate():
            kind = "on the trace's clock"
    return f"{planned(rate_per_s)} requests/s ({kind})"


def bounds(slo: Slo) -> str:
    named = {"TTFT": slo.ttft_s, "TPOT": slo.tpot_s, "every gap": slo.stall_s, "E2E": slo.e2e_s}
    return ", ".join(f"{name} ≤ {planned(1000.0 * bound)} ms" for name, bound in named.items() if bound is not None)


def printable(text: str) -> str:
    """Without what XML cannot carry."""
    return "".join(letter if letter.isprintable() else "�" for letter in text)


def short(name: str) -> str:
    """A name that fits a legend."""
    clean = printable(name)
    return clean if len(clean) <= LONGEST_NAME else f"{clean[: LONGEST_NAME - 1]}…"
