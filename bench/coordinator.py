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

import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.cell import cell, mock_options
from bench.loads import CONCURRENT, SHARE_NOTE, WALL_NOTE, Plan, Quantity, Workload, cpu_s, drive, measured
from bench.rows import Row
from launch.client import StreamingClient
from launch.supervisor import COORDINATOR


@dataclass(frozen=True, slots=True)
class _Sample:
    requests: int
    tokens: int
    messages: int  # to the client
    wall_s: float
    coordinator_s: float  # CPU time
    client_s: float  # CPU time


_FULL = Plan(Workload("paced", 256, 100), Workload("flooded", 1280, 200), Workload("short", 1280, 2), rounds=5)
_QUICK = Plan(Workload("paced", 64, 100), Workload("flooded", 384, 200), Workload("short", 1024, 2), rounds=2)

_OF_TOKENS: tuple[Quantity[_Sample], ...] = (
    Quantity(
        "tokens per coordinator CPU second",
        "tokens/s",
        "a ZeroMQ send per token if paced, else the books of a stream, its text and stop strings in Python",
        lambda sample: sample.tokens / sample.coordinator_s,
    ),
    Quantity("tokens per second", "tokens/s", WALL_NOTE, lambda sample: sample.tokens / sample.wall_s),
    Quantity(
        "tokens per message to the client",
        "tokens",
        "one per step and request, unless steps arrive while the coordinator is busy",
        lambda sample: sample.tokens / sample.messages,
    ),
    Quantity("CPU share of the coordinator", "cores", SHARE_NOTE, lambda s: s.coordinator_s / s.wall_s),
    Quantity("CPU share of the client", "cores", SHARE_NOTE, lambda sample: sample.client_s / sample.wall_s),
)
_OF_REQUESTS: tuple[Quantity[_Sample], ...] = (
    Quantity(
        "requests per coordinator CPU second",
        "requests/s",
        "ZeroMQ sends: nearly all of its messages are alone on their way; then validation and routing in Python",
        lambda sample: sample.requests / sample.coordinator_s,
    ),
    Quantity("requests per second", "requests/s", WALL_NOTE, lambda sample: sample.requests / sample.wall_s),
)


async def run(*, quick: bool) -> list[Row]:
    return await measured("coordinator", _QUICK if quick else _FULL, _measure, _OF_TOKENS, _OF_REQUESTS)


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
