"""When would a whole cell of fake engines answer each request, on a clock that nobody waits for?

The real `Machine` with the workers of tests/support/sim.py, and the fake engine's cost (`engine/fake.py`): `step_s` per
forward and `token_s` per token fed. Messages and transfers take no time; a decode worker takes in what has arrived
between two steps, and a whole prompt of its own in one step. What makes two runs differ is drawn: how fast the machine
is in this run, and every forward.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from coordinator.admission import AdmissionLimits
from coordinator.events import Emit, Event, Fail, Finish, Submitted, Tell, WorkerJoined
from coordinator.local_prefill import LocalPrefill
from coordinator.machine import Machine
from launch.evaluation.results import Outcome, RequestResult
from launch.evaluation.workload import Request
from runtime.params import SamplingParams
from tests.support.cells import peer, pool
from tests.support.sim import Beat, Fault, SimDecode, SimPrefill, Wire

PAGES = 4096
MAX_BATCH = 64
BACKLOG_TOKENS = 1 << 20


@dataclass(frozen=True)
class FakeCell:
    """`prefill` 0 is an aggregated cell."""

    prefill: int = 1
    decode: int = 1
    step_s: float = 0.004
    token_s: float = 0.0005
    run_sigma: float = 0.03  # of the logarithm of the machine's slowness in one run
    step_sigma: float = 0.1  # and in one forward


@dataclass
class _Worker:
    sim: SimPrefill | SimDecode
    busy_until: float = math.inf  # inf: it waits
    computes_prompt: bool = False


@dataclass
class _Answer:
    request: Request
    arrival_s: float
    token_s: list[float] = field(default_factory=list)


def serve_cell(
    requests: Sequence[Request], cell: FakeCell, noise: np.random.Generator, concurrency: int | None = None
) -> list[RequestResult]:
    """
    Args:
        concurrency: of a closed loop; None sends each request when it arrives.
    """
    return _Simulation(requests, cell, noise, concurrency).run()


class _Simulation:
    def __init__(
        self, requests: Sequence[Request], cell: FakeCell, noise: np.random.Generator, concurrency: int | None
    ) -> None:
        local = LocalPrefill(aggregated=cell.prefill == 0, backlog_tokens=BACKLOG_TOKENS)
        limits = AdmissionLimits(
            max_queued_requests=10_000,
            max_queued_tokens=BACKLOG_TOKENS,
            prefill_backlog_tokens=BACKLOG_TOKENS,
            local=local,
        )
        self.machine = Machine(limits)
        self.cell = cell
        self.now = 0.0
        self.pending = deque(requests)
        self.concurrency = concurrency
        self.open: dict[int, _Answer] = {}
        self.results: list[RequestResult] = []
        slowness = float(noise.lognormal(sigma=cell.run_sigma))
        self.slowness: Callable[[], float] = lambda: slowness * float(noise.lognormal(sigma=cell.step_sigma))
        self.workers: dict[str, _Worker] = {}
        wire: Wire = {}
        for number in range(cell.prefill):
            who = peer(f"p{number}")
            self.workers[who.worker_id] = _Worker(SimPrefill(who, wire))
            self._feed(WorkerJoined("prefill", who, pool(PAGES), MAX_BATCH))
        for number in range(cell.decode):
            who = peer(f"d{number}")
            self.workers[who.worker_id] = _Worker(SimDecode(who, wire, PAGES))
            self._feed(WorkerJoined("decode", who, pool(PAGES), MAX_BATCH))
        self._messages()

    def run(self) -> list[RequestResult]:
        while self.pending or self.open:
            free = self.concurrency is not None and len(self.open) < self.concurrency
            arrival = math.inf
            if self.pending and self.concurrency is None:
                arrival = self.pending[0].arrival_s
            elif self.pending and free:
                arrival = self.now
            self.now = min(arrival, *(worker.busy_until for worker in self.workers.values()))
            if arrival == self.now:
                self._submit(self.pending.popleft())
            for worker in self.workers.values():
                if worker.busy_until <= self.now:
                    self._finish(worker)
            self._messages()
            for worker in self.workers.values():
                if worker.busy_until == math.inf:
                    self._start(worker)
        return self.results

    def _submit(self, request: Request) -> None:
        prompt = tuple(range(request.prompt_tokens or 1))
        self.open[request.index] = _Answer(request, self.now)
        sampling = SamplingParams(max_tokens=request.output_tokens, seed=0)
        self._feed(Submitted(request.index, prompt, sampling, 1e9))

    def _start(self, worker: _Worker) -> None:
        sim = worker.sim
        fed = len(sim.running) if isinstance(sim, SimDecode) else 0
        worker.computes_prompt = bool(sim.prompts)
        if worker.computes_prompt:
            fed += len(sim.prompts[min(sim.prompts)].prompt)
        if fed:
            worker.busy_until = self.now + (self.cell.step_s + self.cell.token_s * fed) * self.slowness()

    def _finish(self, worker: _Worker) -> None:
        worker.busy_until = math.inf
        sim = worker.sim
        if isinstance(sim, SimPrefill):
            sim.compute(0, eos=False)
            return
        if sim.running:
            sim.step(eos=0)
        if worker.computes_prompt:
            sim.compute(0, eos=False, fails=False)

    def _messages(self) -> None:
        """Until nobody has anything to read, to settle or to say."""
        moved = True
        while moved:
            moved = False
            for worker in self.workers.values():
                sim = worker.sim
                may_settle = isinstance(sim, SimPrefill) or worker.busy_until == math.inf
                while sim.inbox:
                    sim.read()
                    moved = True
                while may_settle and sim.may_settle():
                    sim.settle(0, Fault.NONE)
                    moved = True
                while sim.outbox:
                    event = sim.outbox.popleft()
                    assert not isinstance(event, Beat)
                    self._feed(event)
                    moved = True

    def _feed(self, event: Event) -> None:
        for action in self.machine.handle(event, self.now):
            match action:
                case Tell(worker_id, message):
                    self.workers[worker_id].sim.inbox.append(message)
                case Emit(request_id, _, tokens):
                    self.open[request_id].token_s += [self.now] * len(tokens)
                case Finish(request_id):
                    self._end(request_id, Outcome.COMPLETED)
                case Fail(request_id):
                    self._end(request_id, Outcome.REJECTED)

    def _end(self, request_id: int, outcome: Outcome) -> None:
        answer = self.open.pop(request_id)
        self.results.append(
            RequestResult(
                index=request_id,
                arrival_s=answer.arrival_s,
                sent_s=answer.arrival_s,
                token_s=tuple(answer.token_s),
                end_s=self.now,
                outcome=outcome,
                prompt_tokens=answer.request.prompt_tokens,
                asked_tokens=answer.request.output_tokens,
            )
        )
