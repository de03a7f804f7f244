"""How much can one core of a coordinator carry?

Measures a cell with the fake engine, which answers at once, under one client with many streams. The rate that counts is
per second of the coordinator's own CPU time, by the kernel's account: on a small machine client, workers and
coordinator compete for the same cores, so tokens per second of wall-clock time say as much about the others. `streams`
are long answers (the cost of a token), `short requests` are as short as one with a hand-off can be (the cost of a
request).

Limited by Python: per token the stream's bookkeeping and detokenising, per step one message in, per request and step at
most one message out; tokens that wait while the coordinator is busy leave in one message, so a busy coordinator pays
less for each. Does not measure tokenising (prompts are token ids), a real tokeniser's detokenising (the fake one maps
bytes), log-probabilities, or many clients.
"""

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.cell import cell, mock_options
from bench.rows import Row, summarise
from launch.client import StreamingClient
from launch.supervisor import COORDINATOR
from runtime.params import SamplingParams

_CONCURRENT = 64
_PROMPT = (97,) * 16


@dataclass(frozen=True, slots=True)
class _Workload:
    """`requests` requests, `_CONCURRENT` at a time, each for `tokens` tokens."""

    name: str
    requests: int
    tokens: int

    @property
    def parameters(self) -> dict[str, str | int]:
        return {"streams": _CONCURRENT, "requests": self.requests, "tokens each": self.tokens}


@dataclass(frozen=True, slots=True)
class _Sample:
    requests: int
    tokens: int
    messages: int  # to the client
    wall_s: float
    coordinator_s: float  # CPU time
    client_s: float  # CPU time


_FULL = ((_Workload("streams", 1280, 200), _Workload("short requests", 1280, 2)), 5)
_QUICK = ((_Workload("streams", 384, 200), _Workload("short requests", 1024, 2)), 3)
_BUSY_NOTE = "whoever of coordinator, client and workers first fills a core: compare the CPU shares"
_SHARE_NOTE = "not a limit; CPU seconds per second of wall-clock time"
_QUANTITIES: tuple[tuple[str, str, str, str, Callable[[_Sample], float]], ...] = (
    # workload, quantity, unit, limited by, value
    (
        "streams",
        "tokens per coordinator CPU second",
        "tokens/s",
        "Python per token and per message to the client; merging makes it rise with the load",
        lambda s: s.tokens / s.coordinator_s,
    ),
    ("streams", "tokens per second", "tokens/s", _BUSY_NOTE, lambda s: s.tokens / s.wall_s),
    (
        "streams",
        "tokens per message to the client",
        "tokens",
        "one token per step and request, unless several steps arrive while the coordinator is busy",
        lambda s: s.tokens / s.messages,
    ),
    ("streams", "CPU share of the coordinator", "cores", _SHARE_NOTE, lambda s: s.coordinator_s / s.wall_s),
    ("streams", "CPU share of the client", "cores", _SHARE_NOTE, lambda s: s.client_s / s.wall_s),
    (
        "short requests",
        "requests per coordinator CPU second",
        "requests/s",
        "Python per request: about ten messages, validation, routing and the books of its pages",
        lambda s: s.requests / s.coordinator_s,
    ),
    ("short requests", "requests per second", "requests/s", _BUSY_NOTE, lambda s: s.requests / s.wall_s),
)


async def run(*, quick: bool) -> list[Row]:
    workloads, rounds = _QUICK if quick else _FULL
    samples: dict[str, list[_Sample]] = {workload.name: [] for workload in workloads}
    async with cell(mock_options()) as running, StreamingClient(running.endpoint) as client:
        coordinator = running.supervisor.pids()[COORDINATOR]
        await _drive(client, _Workload("warm-up", _CONCURRENT, 50))
        for _ in range(rounds):
            for workload in workloads:
                samples[workload.name].append(await _sample(client, workload, coordinator))
    return [
        summarise(
            "coordinator",
            quantity,
            [value(sample) for sample in samples[workload.name]],
            unit=unit,
            limited_by=limited_by,
            parameters=workload.parameters,
        )
        for workload in workloads
        for name, quantity, unit, limited_by, value in _QUANTITIES
        if name == workload.name
    ]


async def _sample(client: StreamingClient, workload: _Workload, coordinator: int) -> _Sample:
    start, client_start, coordinator_start = time.perf_counter(), time.process_time(), cpu_s(coordinator)
    messages = await _drive(client, workload)
    return _Sample(
        requests=workload.requests,
        tokens=workload.requests * workload.tokens,
        messages=messages,
        wall_s=time.perf_counter() - start,
        coordinator_s=cpu_s(coordinator) - coordinator_start,
        client_s=time.process_time() - client_start,
    )


async def _drive(client: StreamingClient, workload: _Workload) -> int:
    """Run a workload to its end; how many messages brought its tokens.

    Raises:
        AssertionError: a request ended early.
    """
    left = iter(range(workload.requests))
    sampling = SamplingParams(max_tokens=workload.tokens, temperature=0.0, ignore_eos=True)

    async def stream() -> int:
        messages = 0
        for number in left:  # shared: whoever is free takes the next
            done = await client.generate(prompt_token_ids=_PROMPT, sampling=sampling).finish()
            if len(done.token_ids) != workload.tokens:
                raise AssertionError(f"request {number} has {len(done.token_ids)} of {workload.tokens} tokens")
            messages += sum(gap_s > 0 for gap_s in done.gaps_s)  # tokens of one message arrive at the same time
        return messages

    async with asyncio.TaskGroup() as tasks:
        streams = [tasks.create_task(stream()) for _ in range(_CONCURRENT)]
    return sum(task.result() for task in streams)


def cpu_s(pid: int) -> float:
    """User and system time of all threads of a process so far; proc(5), a clock tick (10 ms) at a time."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
