"""How long does a cell take from its launch until it serves?

Measures one launch after another, from the first process to the ready message, and the stages that the workers tell of
on the way: a stage lasts from a worker's message about it to that worker's next one, or until the cell is ready, and
the slowest worker counts. The first stage lasts from the launch to the first message.

Limited by imports (torch, transformers) and, with a model, by reading its weights once per worker and the check of its
attention, on the cores of one worker each. Does not measure a cold page cache, or pulling the model.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.cell import cell, mock_options, model_options
from bench.rows import Row, summarise
from launch.config import CellOptions
from transport.messages.launcher import WorkerProgress

_BEFORE_ANY_MESSAGE = "starting processes"
_TOTAL_NOTE = "imports, and with a model its loading; both workers load at the same time"
_STAGE_NOTE = "the slowest worker; as the launcher hears of it, so a message may wait for the coordinator to be up"


@dataclass(frozen=True, slots=True)
class Heard:
    """A worker's message, `at_s` seconds after the launch."""

    at_s: float
    worker_id: str
    stage: str


async def run(*, quick: bool) -> list[Row]:
    launches = ((mock_options(), 2), (model_options(), 1)) if quick else ((mock_options(), 5), (model_options(), 3))
    return [row for options, repetitions in launches for row in await _measure(options, repetitions)]


async def _measure(options: CellOptions, repetitions: int) -> list[Row]:
    parameters = {"model": options.model_name}
    totals: list[float] = []
    stages: dict[str, list[float]] = {}
    for _ in range(repetitions):
        ready_s, heard = await _launch(options)
        totals.append(ready_s)
        for stage, seconds in stage_seconds(heard, ready_s).items():
            stages.setdefault(stage, []).append(seconds)
    total = summarise("startup", "launch to ready", totals, unit="s", limited_by=_TOTAL_NOTE, parameters=parameters)
    return [total] + [
        summarise("startup", f"- {stage}", seconds, unit="s", limited_by=_STAGE_NOTE, parameters=parameters)
        for stage, seconds in stages.items()
    ]


async def _launch(options: CellOptions) -> tuple[float, list[Heard]]:
    heard: list[Heard] = []
    start = time.perf_counter()

    def note(message: WorkerProgress) -> None:
        heard.append(Heard(time.perf_counter() - start, message.worker_id, message.stage))

    async with cell(options, note):
        return time.perf_counter() - start, heard


def stage_seconds(heard: Sequence[Heard], ready_s: float) -> dict[str, float]:
    """Seconds of each stage, in the order in which the stages were first heard of.

    Args:
        heard: in order of arrival; a stage may be told of several times in a row.
        ready_s: when the cell was ready, after the launch.
    """
    seconds = {_BEFORE_ANY_MESSAGE: min((message.at_s for message in heard), default=ready_s)}
    for worker_id in dict.fromkeys(message.worker_id for message in heard):
        told: dict[str, float] = {}  # when this worker first told of each stage
        for message in heard:
            if message.worker_id == worker_id:
                told.setdefault(message.stage, message.at_s)
        ends = [*list(told.values())[1:], ready_s]
        for (stage, start_s), end_s in zip(told.items(), ends, strict=True):
            seconds[stage] = max(seconds.get(stage, 0.0), end_s - start_s)
    return seconds
