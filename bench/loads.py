"""Which loads do coordinators get in the benchmarks, and how do samples of them become rows?

Shared by `bench.coordinator` and `bench.http`, which compare the same loads through two fronts.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from bench.rows import Row, summarise
from engine.fake import fake_tokens
from launch.client import StreamingClient
from runtime.params import SamplingParams

S = TypeVar("S")

CONCURRENT = 64
PROMPT = (97,) * 16
PACED_STEP_S = 0.01
WALL_NOTE = "the engine's steps if paced, else whoever of coordinator, client and workers first fills a core"
SHARE_NOTE = "not a limit: CPU seconds per second of wall-clock time"


@dataclass(frozen=True, slots=True)
class Workload:
    """`requests` requests, `CONCURRENT` at a time, each for `tokens` tokens."""

    name: str
    requests: int
    tokens: int

    @property
    def parameters(self) -> dict[str, str | int]:
        return {"load": self.name, "streams": CONCURRENT, "requests": self.requests, "tokens each": self.tokens}


@dataclass(frozen=True, slots=True)
class Plan:
    paced: Workload
    flooded: Workload
    short: Workload
    rounds: int


@dataclass(frozen=True, slots=True)
class Quantity(Generic[S]):
    name: str
    unit: str
    limited_by: str
    value: Callable[[S], float]


async def measured(
    benchmark: str,
    plan: Plan,
    measure: Callable[[float, Sequence[Workload], int], Awaitable[dict[Workload, list[S]]]],
    of_tokens: Sequence[Quantity[S]],
    of_requests: Sequence[Quantity[S]],
) -> list[Row]:
    """Measure the loads of a plan: the paced one on a paced engine, the others on one that answers at once.

    Args:
        measure: takes the seconds of an engine's step, the loads of one cell, and the rounds.
        of_requests: what is told of the short load, which is for the cost of a request.
    """
    paced = await measure(PACED_STEP_S, (plan.paced,), plan.rounds)
    at_once = await measure(0.0, (plan.flooded, plan.short), plan.rounds)
    return [
        summarise(
            benchmark,
            quantity.name,
            [quantity.value(sample) for sample in samples],
            unit=quantity.unit,
            limited_by=quantity.limited_by,
            parameters=workload.parameters,
        )
        for workload, samples in (*paced.items(), *at_once.items())
        for quantity in (of_requests if workload is plan.short else of_tokens)
    ]


async def drive(client: StreamingClient, workload: Workload) -> int:
    """Run a workload to its end; how many messages brought its tokens.

    Raises:
        AssertionError: an answer is not the one that can be computed by hand.
    """
    left = iter(range(workload.requests))
    expected = fake_tokens(PROMPT, workload.tokens)
    sampling = SamplingParams(max_tokens=workload.tokens, temperature=0.0, ignore_eos=True)

    async def stream() -> int:
        messages = 0
        for number in left:  # shared: whoever is free takes the next
            done = await client.generate(prompt_token_ids=PROMPT, sampling=sampling).finish()
            if done.token_ids != expected:
                raise AssertionError(f"request {number} of {workload.name} was answered wrongly")
            messages += sum(gap_s > 0 for gap_s in done.gaps_s)  # tokens of one message arrive at the same time
        return messages

    async with asyncio.TaskGroup() as tasks:
        streams = [tasks.create_task(stream()) for _ in range(CONCURRENT)]
    return sum(task.result() for task in streams)


def cpu_s(pid: int) -> float:
    """User and system time of all threads of a process so far; proc(5), a clock tick (10 ms) at a time."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
