"""When does each request of a workload start?

Pure. The gaps are drawn at one request per second and then divided by the rate, so a seed means the same process at
every rate, only faster: what differs between two rates is the load, not the luck. Unlike `vllm bench`, which stretches
its gaps until the last request falls on time, nothing is rescaled: that would make every arrival depend on all others.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Annotated

from msgspec import Meta, Struct

from launch.evaluation.draws import Purpose, stream

Rate = Annotated[float, Meta(gt=0.0, le=1e6)]


class Poisson(Struct, frozen=True, tag="poisson"):
    rate_per_s: Rate


class Gamma(Struct, frozen=True, tag="gamma"):
    """Gaps of a gamma distribution; `burstiness` is its shape, as in `vllm bench`: 1 is Poisson, less is burstier."""

    rate_per_s: Rate
    burstiness: Annotated[float, Meta(gt=0.0, le=1e6)]


class Constant(Struct, frozen=True, tag="constant"):
    rate_per_s: Rate


class TraceClock(Struct, frozen=True, tag="trace-clock"):
    """As recorded, `speed` times as fast; the order is never touched."""

    speed: Annotated[float, Meta(gt=0.0, le=1e6)] = 1.0


class TraceRate(Struct, frozen=True, tag="trace-rate"):
    """As recorded, at the one speed at which the requests of this run have this mean rate.

    The parts of a trace have rates of their own, which may be several times that of the whole.
    """

    rate_per_s: Rate


class ClosedLoop(Struct, frozen=True, tag="closed-loop"):
    """Every request may start at once; `concurrency` of them are under way at any time."""

    concurrency: Annotated[int, Meta(ge=1, le=1 << 16)]


RandomArrivals = Poisson | Gamma | Constant
Arrivals = RandomArrivals | TraceClock | TraceRate | ClosedLoop


def arrive(
    arrivals: Arrivals, count: int, seed: int, *, first: int = 0, recorded_s: Sequence[float] = ()
) -> tuple[float, ...]:
    """Seconds since the start of the run, never falling.

    Args:
        first: the index of the first request; the gaps of a run that goes on elsewhere are drawn anew.
        recorded_s: when the requests of a trace arrived; only `TraceClock` and `TraceRate` look at it.

    Raises:
        ValueError: the trace has fewer requests; or these have no rate.
    """
    match arrivals:
        case TraceClock() | TraceRate():
            recorded = recorded_s[first : first + count]
            if len(recorded) < count:
                raise ValueError(f"the trace has {len(recorded)} arrivals from request {first} on, not {count}")
            speed = arrivals.speed if isinstance(arrivals, TraceClock) else _speed_for(arrivals.rate_per_s, recorded)
            return tuple((at - recorded[0]) / speed for at in recorded)
        case ClosedLoop():
            return (0.0,) * count
        case _:
            sums = accumulate(_unit_gap(arrivals, seed, index) for index in range(first, first + count))
            return tuple(at / arrivals.rate_per_s for at in sums)


def _speed_for(rate_per_s: float, recorded_s: Sequence[float]) -> float:
    """How many times as fast as recorded these arrivals have this mean rate.

    Raises:
        ValueError: they are at one time.
    """
    if len(recorded_s) < 2 or recorded_s[-1] <= recorded_s[0]:
        raise ValueError(
            f"{len(recorded_s)} of the trace's requests that arrive at one time have no rate: more of them in a run may"
        )
    return rate_per_s * (recorded_s[-1] - recorded_s[0]) / (len(recorded_s) - 1)


def _unit_gap(arrivals: RandomArrivals, seed: int, index: int) -> float:
    match arrivals:
        case Constant():
            return 1.0
        case Poisson():
            return float(stream(seed, Purpose.ARRIVAL, index).exponential())
        case Gamma(burstiness=shape):
            return float(stream(seed, Purpose.ARRIVAL, index).gamma(shape, 1.0 / shape))
