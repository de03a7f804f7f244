"""How do systems do at each of several rates?

Every system gets the same requests at a rate, and new ones at the next. Who is first alternates, so that a machine that
slows down over the hours is no system's advantage.
"""

from collections.abc import Sequence

from msgspec import Struct

from launch.evaluation.campaigns.progress import Course
from launch.evaluation.campaigns.session import Session, Size, Source
from launch.evaluation.study import Run


class SweepOptions(Struct, frozen=True, kw_only=True):
    rates_per_s: tuple[float, ...]
    size: Size = Size()


async def sweep(session: Session, source: Source, systems: Sequence[str], options: SweepOptions) -> tuple[Run, ...]:
    planned = [options.size.planned_s(rate) for rate in options.rates_per_s for _ in systems]
    course = Course("sweep", list(planned))
    runs = []
    for turn, rate in enumerate(options.rates_per_s):
        arrivals = session.at_rate(rate)
        workload = session.fresh(source, systems, arrivals, options.size.requests(rate))
        for system in systems if turn % 2 == 0 else reversed(systems):
            run, _ = await session.run(system, workload, arrivals, course)
            runs.append(run)
    return tuple(runs)


def parse_rates(text: str) -> tuple[float, ...]:
    """`1,2,4`, or `low:high:steps`: so many rates, each the same factor above the one before.

    Raises:
        ValueError: it is neither, or a rate is not above 0.
    """
    try:
        if ":" in text:
            low_text, high_text, steps_text = text.split(":")
            rates = _geometric(float(low_text), float(high_text), int(steps_text))
        else:
            rates = tuple(float(rate) for rate in text.split(","))
    except ValueError:
        rates = ()
    if not rates or not all(0.0 < rate <= 1e6 for rate in rates):
        raise ValueError(f"{text!r} names no rates: write them as 1,2,4 or as low:high:steps, such as 0.5:8:5")
    return rates


def _geometric(low: float, high: float, steps: int) -> tuple[float, ...]:
    if not (0.0 < low < high and steps >= 2):
        return ()
    return (*(low * (high / low) ** (step / (steps - 1)) for step in range(steps - 1)), high)
