"""How much can one core carry of a coordinator whose clients speak HTTP?

The loads of `bench.coordinator`, as chat completions that are streamed, and in the same cell and the same round through
the ZeroMQ client, so that the difference is the front. As there, what counts is per second of the coordinator's own CPU
time. The reader of the streams is a process of its own that parses nothing (`bench.http_load`), on the cores of the
prefill worker, which has the least to do.

Limited by Python and by a system call for each chunk of each stream. Does not measure tokenising and detokenising by a
real tokenizer, connections that are made anew for each request, TLS, or log-probabilities.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from bench.cell import cell, mock_options
from bench.child import Channel, started
from bench.http_load import Load, Loaded
from bench.loads import (
    CONCURRENT,
    PROMPT,
    SHARE_NOTE,
    WALL_NOTE,
    Plan,
    Quantity,
    Workload,
    cpu_s,
    drive,
    measured,
)
from bench.rows import Row
from coordinator.config import HttpConfig
from launch.client import StreamingClient
from launch.supervisor import COORDINATOR

_PATH = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class _Sample:
    """One load through HTTP and then through ZeroMQ."""

    requests: int
    tokens: int
    events: int
    wall_s: float
    coordinator_s: float  # CPU time
    reader_s: float  # CPU time
    zmq_coordinator_s: float  # CPU time


_FULL = Plan(Workload("paced", 256, 100), Workload("flooded", 640, 200), Workload("short", 640, 2), rounds=5)
_QUICK = Plan(Workload("paced", 64, 100), Workload("flooded", 192, 200), Workload("short", 256, 2), rounds=2)

_HTTP_NOTE = "per chunk a wake-up, a JSON text, uvicorn and a system call, if paced; else the books of a stream, too"
_ZMQ_NOTE = "as in the benchmark of the coordinator: one send takes along the tokens of all streams of a client"
_OF_TOKENS: tuple[Quantity[_Sample], ...] = (
    Quantity(
        "streamed tokens per coordinator CPU second", "tokens/s", _HTTP_NOTE, lambda s: s.tokens / s.coordinator_s
    ),
    Quantity("the same through ZeroMQ", "tokens/s", _ZMQ_NOTE, lambda sample: sample.tokens / sample.zmq_coordinator_s),
    Quantity(
        "CPU time of a token, HTTP less ZeroMQ",
        "us",
        _HTTP_NOTE,
        lambda s: 1e6 * (s.coordinator_s - s.zmq_coordinator_s) / s.tokens,
    ),
    Quantity("streamed tokens per second", "tokens/s", WALL_NOTE, lambda sample: sample.tokens / sample.wall_s),
    Quantity(
        "events per token",
        "events",
        "one per token, one each for role, usage and the end; fewer if tokens gather while the coordinator is busy",
        lambda sample: sample.events / sample.tokens,
    ),
    Quantity("CPU share of the coordinator", "cores", SHARE_NOTE, lambda s: s.coordinator_s / s.wall_s),
    Quantity("CPU share of the reader", "cores", SHARE_NOTE, lambda sample: sample.reader_s / sample.wall_s),
)
_OF_REQUESTS: tuple[Quantity[_Sample], ...] = (
    Quantity(
        "requests per coordinator CPU second",
        "requests/s",
        "parsing, routing, validation and two chunks in Python, and what the workers are told",
        lambda sample: sample.requests / sample.coordinator_s,
    ),
    Quantity(
        "the same through ZeroMQ", "requests/s", _ZMQ_NOTE, lambda sample: sample.requests / sample.zmq_coordinator_s
    ),
    Quantity("requests per second", "requests/s", WALL_NOTE, lambda sample: sample.requests / sample.wall_s),
)


async def run(*, quick: bool) -> list[Row]:
    return await measured("http", _QUICK if quick else _FULL, _measure, _OF_TOKENS, _OF_REQUESTS)


async def _measure(step_s: float, workloads: Sequence[Workload], rounds: int) -> dict[Workload, list[_Sample]]:
    """The workloads in turns, on one cell whose engine takes `step_s` for a step."""
    samples: dict[Workload, list[_Sample]] = {workload: [] for workload in workloads}
    options = msgspec.structs.replace(mock_options(step_s), http=HttpConfig(port=0))
    async with cell(options) as running, StreamingClient(running.endpoint) as client:
        port = running.ready.http_port
        if port is None:
            raise AssertionError("the cell has no HTTP front")
        coordinator = running.supervisor.pids()[COORDINATOR]
        async with started("bench.http_load", running.placement.prefill[0]) as reader:
            warm_up = Workload("warm-up", CONCURRENT, 50)
            await _read(reader, port, warm_up)
            await drive(client, warm_up)
            for _ in range(rounds):
                for workload in workloads:
                    samples[workload].append(await _sample(reader, port, client, workload, coordinator))
    return samples


async def _sample(reader: Channel, port: int, client: StreamingClient, workload: Workload, coordinator: int) -> _Sample:
    before = cpu_s(coordinator)
    start = time.perf_counter()
    loaded = await _read(reader, port, workload)
    between, wall_s = cpu_s(coordinator), time.perf_counter() - start
    await drive(client, workload)
    return _Sample(
        requests=workload.requests,
        tokens=workload.requests * workload.tokens,
        events=loaded.events,
        wall_s=wall_s,
        coordinator_s=between - before,
        reader_s=loaded.client_s,
        zmq_coordinator_s=cpu_s(coordinator) - between,
    )


async def _read(reader: Channel, port: int, workload: Workload) -> Loaded:
    body = {
        "messages": [{"role": "user", "content": bytes(PROMPT).decode()}],
        "max_tokens": workload.tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    text = msgspec.json.encode(body).decode()
    reader.send(Load(port, _PATH, text, workload.requests, CONCURRENT, workload.tokens))
    return await reader.receive(Loaded)
