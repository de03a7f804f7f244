"""How much can one core carry of a coordinator?

Measures cells with the fake engine under one client with many streams. The rate that counts is per second of the
coordinator's own CPU time, by the kernel's account: on a small machine client, workers and coordinator compete for the
same cores, so tokens per second of wall-clock time say as much about the others.

- `paced`: long answers from an engine whose steps take as long as a fast model's: each token is a message of its own.
- `flooded`: the same from an engine that answers at once: tokens that wait while the coordinator is busy leave in one
  message, so a busy coordinator pays less for each.
- `short`: answers as short as one with a hand-off can be, for the cost of a request.

Limited by Python and by ZeroMQ's sends. Does not measure tokenising (prompts are token ids), a real tokeniser's
detokenising (the fake one maps bytes), log-probabilities, or many clients.
"""

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.cell import cell, mock_options
from bench.rows import Row, summarise
from engine.fake import fake_tokens
from launch.client import StreamingClient
from launch.supervisor import COORDINATOR
from runtime.params import SamplingParams

CONCURRENT = 64
PROMPT = (97,) * 16
PACED_STEP_S = 0.01


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
class _Plan:
    paced: Workload
    flooded: Workload
    short: Workload
    rounds: int


@dataclass(frozen=True, slots=True)
class _Sample:
    requests: int
    tokens: int
    messages: int  # to the client
    wall_s: float
    coordinator_s: float  # CPU time
    client_s: float  # CPU time


@dataclass(frozen=True, slots=True)
class _Quantity:
    name: str
    unit: str
    limited_by: str
    value: Callable[[_Sample], float]


_FULL = _Plan(Workload("paced", 256, 100), Workload("flooded", 1280, 200), Workload("short", 1280, 2), rounds=5)
_QUICK = _Plan(Workload("paced", 64, 100), Workload("flooded", 384, 200), Workload("short", 1024, 2), rounds=2)

WALL_NOTE = "the engine's steps if paced, else whoever of coordinator, client and workers first fills a core"
SHARE_NOTE = "not a limit: CPU seconds per second of wall-clock time"
_OF_TOKENS = (
    _Quantity(
        "tokens per coordinator CPU second",
        "tokens/s",
        "a ZeroMQ send per token if paced, else the books of a stream, its text and stop strings in Python",
        lambda sample: sample.tokens / sample.coordinator_s,
    ),
    _Quantity("tokens per second", "tokens/s", WALL_NOTE, lambda sample: sample.tokens / sample.wall_s),
    _Quantity(
        "tokens per message to the client",
        "tokens",
        "one per step and request, unless steps arrive while the coordinator is busy",
        lambda sample: sample.tokens / sample.messages,
    ),
    _Quantity("CPU share of the coordinator", "cores", SHARE_NOTE, lambda s: s.coordinator_s / s.wall_s),
    _Quantity("CPU share of the client", "cores", SHARE_NOTE, lambda sample: sample.client_s / sample.wall_s),
)
_OF_REQUESTS = (
    _Quantity(
        "requests per coordinator CPU second",
        "requests/s",
        "ZeroMQ sends: nearly all of its messages are alone on their way; then validation and routing in Python",
        lambda sample: sample.requests / sample.coordinator_s,
    ),
    _Quantity("requests per second", "requests/s", WALL_NOTE, lambda sample: sample.requests / sample.wall_s),
)


async def run(*, quick: bool) -> list[Row]:
    plan = _QUICK if quick else _FULL
    paced = await _measure(PACED_STEP_S, (plan.paced,), plan.rounds)
    at_once = await _measure(0.0, (plan.flooded, plan.short), plan.rounds)
    return [
        summarise(
            "coordinator",
            quantity.name,
            [quantity.value(sample) for sample in samples],
            unit=quantity.unit,
            limited_by=quantity.limited_by,
            parameters=workload.parameters,
        )
        for workload, samples in (*paced.items(), *at_once.items())
        for quantity in (_OF_REQUESTS if workload is plan.short else _OF_TOKENS)
    ]


async def _measure(step_s: float, workloads: Sequence[Workload], rounds: int) -> dict[Workload, list[_Sample]]:
    """The workloads in turns, on one cell whose engine takes `step_s` for a step."""
    samples: dict[Workload, list[_Sample]] = {workload: [] for workload in workloads}
    async with cell(mock_options(step_s)) as running, StreamingClient(running.endpoint) as client:
        coordinator = running.supervisor.pids()[COORDINATOR]
        await drive(client, Workload("warm-up", CONCURRENT, 50))
        for _ in range(rounds):
            for workload in workloads:
                samples[workload].append(await _sample(client, workload, coordinator))
    return samples


async def _sample(client: StreamingClient, workload: Workload, coordinator: int) -> _Sample:
    start, client_start, coordinator_start = time.perf_counter(), time.process_time(), cpu_s(coordinator)
    messages = await drive(client, workload)
    return _Sample(
        requests=workload.requests,
        tokens=workload.requests * workload.tokens,
        messages=messages,
        wall_s=time.perf_counter() - start,
        coordinator_s=cpu_s(coordinator) - coordinator_start,
        client_s=time.process_time() - client_start,
    )


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
