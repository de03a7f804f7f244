"""Does the machine keep its promises in every order of messages, and through the faults of workers and transfers?

Simulated workers (tests/support/sim.py) answer the real `Machine`. Hypothesis chooses who reads, computes, settles, is
heard, dies and comes back; the invariants of tests/support/cells.py are checked after every event. At the end the
faults stop, and everything must come to rest: each request ended once, nothing held, every credit back.
"""

import random
from collections.abc import Callable
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from coordinator.admission import AdmissionLimits
from coordinator.events import (
    Action,
    CancelAsked,
    DrainAsked,
    Emit,
    Event,
    Fail,
    Finish,
    Stopped,
    StopStringFound,
    Submitted,
    Tell,
    Ticked,
    WorkerJoined,
    WorkerLost,
)
from coordinator.local_prefill import LocalPrefill
from coordinator.machine import Machine
from runtime.params import FinishReason, SamplingParams
from tests.support.cells import Ledgers, peer, pool
from tests.support.sim import Beat, Fault, SimDecode, SimPrefill, Wire, sampled
from transport.messages.worker import Admit, Prefill, Serve

PAGES = 16
LIMITS = AdmissionLimits(max_queued_requests=4, max_queued_tokens=60, prefill_backlog_tokens=12)
AGGREGATED = LocalPrefill(aggregated=True, backlog_tokens=12)
REMOTE = LocalPrefill()
MIXED = LocalPrefill(prompt_tokens=6, backlog_tokens=8)  # half of the prompts, if their worker is not busy with others
LONG_S, SHORT_S = 1e6, 3.0
PICK = st.integers(0, 7)
MAX_ROUNDS = 40
"""Rounds in which a faultless cell must come to rest; a handful of requests takes a few dozen."""


class World:
    """The machine, the workers, and what was promised to whom."""

    def __init__(self, names: list[str], local: LocalPrefill) -> None:
        self.machine = Machine(replace(LIMITS, local=local))
        self.local = local
        self.ledgers = Ledgers()
        self.now = 50.0
        self.wire: Wire = {}
        self.names = names
        self.epochs = dict.fromkeys(names, 0)
        self.workers: dict[str, SimPrefill | SimDecode] = {}
        self.dead: set[str] = set()  # killed, and the coordinator has not noticed
        self.asked: dict[int, Submitted] = {}
        self.cancelled: set[int] = set()
        self.made: dict[int, int] = {}  # tokens of requests that a worker has finished
        self.transfers: dict[int, int] = {}  # by request
        self.decodes_at: dict[int, str] = {}
        self.computed_at: dict[int, str] = {}  # of requests that are not handed off
        self.without_token: set[int] = set()  # their row failed
        self.stopped = False
        self.broken = False

    # --- the machine -------------------------------------------------------------------------------------------------

    def feed(self, event: Event) -> None:
        self.broken = True
        actions = self.machine.handle(event, self.now)
        self.ledgers.check(self.machine.cell, event, actions)
        for action in actions:
            self._execute(action)
        self.broken = False

    def _execute(self, action: Action) -> None:
        match action:
            case Tell(worker_id, message):
                if isinstance(message, Prefill):
                    self.transfers[message.request_id] = message.transfer_id
                if isinstance(message, Admit | Serve):
                    self.decodes_at[message.request_id] = worker_id
                if isinstance(message, Serve):
                    assert self.local.may_compute(len(message.prompt))
                    self.computed_at[message.request_id] = worker_id
                if worker_id in self.workers and worker_id not in self.dead:
                    self.workers[worker_id].inbox.append(message)
            case Emit(request_id, index, tokens):
                assert tokens == (sampled(request_id, index),)
            case Finish(request_id, reason):
                self._finished(request_id, reason)
            case Fail(request_id, code):
                self._failed(request_id, code)

    def _finished(self, request_id: int, reason: FinishReason) -> None:
        emitted = len(self.ledgers.emitted.get(request_id, []))
        if reason is FinishReason.LENGTH:
            assert emitted == self.asked[request_id].sampling.max_tokens
        elif reason is FinishReason.STOP and request_id not in self.cancelled:
            assert emitted == self.made[request_id]
        else:
            assert request_id in self.cancelled

    def _failed(self, request_id: int, code: str) -> None:
        match code:
            case "timeout":
                assert self.asked[request_id].timeout_s == SHORT_S
            case "worker_lost":
                assert max(self.epochs.values()) > 1 or len(self.machine.cell.workers) < len(self.names)
                decoding = len(self.ledgers.emitted.get(request_id, [])) > 1 or request_id in self.computed_at
                assert not (decoding and self.decodes_at[request_id] in self.machine.cell.workers), (
                    "it needed nobody else"
                )
            case "internal":
                if request_id in self.computed_at:
                    assert request_id in self.without_token
                else:
                    assert self.wire[self.transfers[request_id]].faulty
            case "draining":
                assert self.stopped or not self._has_started(request_id)
            case "overloaded" | "invalid_request":
                assert not self._has_started(request_id), "it was refused after it had started"

    def _has_started(self, request_id: int) -> bool:
        return request_id in self.transfers or request_id in self.computed_at

    # --- moves -------------------------------------------------------------------------------------------------------

    def join(self, name: str) -> None:
        self.epochs[name] += 1
        who = peer(name, self.epochs[name])
        if name.startswith("p"):
            self.workers[name] = SimPrefill(who, self.wire)
            self.feed(WorkerJoined("prefill", who, pool(PAGES), 4))
        else:
            self.workers[name] = SimDecode(who, self.wire, PAGES)
            self.feed(WorkerJoined("decode", who, pool(PAGES), 4))

    def lose(self, name: str) -> None:
        del self.workers[name]
        self.dead.discard(name)
        self.feed(WorkerLost(name, "killed"))

    def deliver(self, name: str) -> None:
        event = self.workers[name].outbox.popleft()
        if isinstance(event, Beat):
            self._check_conservation(name, event)
        else:
            self.feed(event)

    def _check_conservation(self, name: str, beat: Beat) -> None:
        """What `coordinator.worker_link` does with a Heartbeat."""
        record = self.machine.cell.workers[name]
        testing = any(name in (test.prefill, test.decode) for test in self.machine.cell.link_tests.values())
        if not record.requests and not testing:
            assert (record.free_pages, record.quarantined_pages) == (beat.free_pages, beat.quarantined_pages)

    def compute(self, name: str, pick: int, *, eos: bool, fails: bool) -> None:
        worker = self.workers[name]
        request_id = sorted(worker.prompts)[pick % len(worker.prompts)]
        if isinstance(worker, SimPrefill):
            finish = worker.compute(pick, eos=eos)
        else:
            finish = worker.compute(pick, eos=eos, fails=fails)
            self.without_token |= {request_id} if fails else set()
        if finish is not None:
            self.made[request_id] = 1

    def step(self, name: str, eos: int) -> None:
        worker = self.workers[name]
        assert isinstance(worker, SimDecode)
        indices = {request_id: index for request_id, (_, index) in worker.running.items()}
        for request_id in worker.step(eos):
            self.made[request_id] = indices[request_id] + 1

    # --- who can do what ---------------------------------------------------------------------------------------------

    def alive(self, can: Callable[[SimPrefill | SimDecode], object] = lambda _: True) -> list[str]:
        return [name for name, worker in sorted(self.workers.items()) if name not in self.dead and can(worker)]

    def heard(self) -> list[str]:
        """A dead worker's last messages may still be on their way."""
        return [name for name, worker in sorted(self.workers.items()) if worker.outbox]

    def moves(self, fault: Fault = Fault.NONE) -> list[Callable[[random.Random], None]]:
        """Everything that can go on without a client, a clock or a kill."""
        read = [lambda _, n=name: self.workers[n].read() for name in self.alive(lambda w: w.inbox)]
        deliver = [lambda _, n=name: self.deliver(n) for name in self.heard()]
        settle = [
            lambda r, n=name: self.workers[n].settle(r.randrange(8), fault)
            for name in self.alive(lambda w: w.may_settle())
        ]
        compute = [
            lambda r, n=name: self.compute(n, r.randrange(8), eos=r.random() < 0.2, fails=fault is Fault.FAILED)
            for name in self.alive(lambda w: w.prompts)
        ]
        step = [
            lambda r, n=name: self.step(n, 1 << r.randrange(12))
            for name in self.alive(lambda w: isinstance(w, SimDecode) and w.running)
        ]
        return [*read, *deliver, *settle, *compute, *step]


class MachineUnderFaults(RuleBasedStateMachine):
    world: World

    @initialize(
        prefill=st.integers(1, 2),
        decode=st.integers(1, 2),
        local=st.sampled_from([REMOTE, MIXED, AGGREGATED]),
        linked=st.booleans(),
    )
    def open(self, prefill: int, decode: int, local: LocalPrefill, *, linked: bool) -> None:
        prefill = 0 if local.aggregated else prefill
        names = [f"p{number}" for number in range(prefill)] + [f"d{number}" for number in range(decode)]
        self.world = World(names, local)
        for name in names:
            self.world.join(name)
        if linked:
            run(self.world, seed=0, count=200)

    # --- clients -----------------------------------------------------------------------------------------------------

    @rule(prompt=st.integers(1, 12), max_tokens=st.integers(1, 6), timeout_s=st.sampled_from([LONG_S, SHORT_S]))
    def submit(self, prompt: int, max_tokens: int, timeout_s: float) -> None:
        request_id = len(self.world.asked)
        sampling = SamplingParams(max_tokens=max_tokens, seed=0)
        event = Submitted(request_id, tuple(range(prompt)), sampling, timeout_s)
        self.world.asked[request_id] = event
        self.world.feed(event)

    @precondition(lambda self: self.world.asked)
    @rule(pick=PICK, event=st.sampled_from([CancelAsked, StopStringFound]))
    def end(self, pick: int, event: type[CancelAsked] | type[StopStringFound]) -> None:
        request_id = max(len(self.world.asked) - 1 - pick, 0)
        self.world.cancelled.add(request_id)
        self.world.feed(event(request_id))

    @precondition(lambda self: len(self.world.asked) > 12)
    @rule(event=st.sampled_from([DrainAsked, Stopped]))
    def drain(self, event: type[DrainAsked] | type[Stopped]) -> None:
        self.world.stopped |= event is Stopped
        self.world.feed(event())

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.5]))
    def tick(self, seconds: float) -> None:
        self.world.now += seconds
        self.world.feed(Ticked())

    # --- workers, one at a time --------------------------------------------------------------------------------------

    @rule(seed=st.integers(0, 1 << 16), count=st.integers(1, 24), fault=st.sampled_from(Fault))
    def go_on(self, seed: int, count: int, fault: Fault) -> None:
        run(self.world, seed, count, fault)

    @precondition(lambda self: self.world.alive(lambda w: w.inbox))
    @rule(pick=PICK)
    def read(self, pick: int) -> None:
        names = self.world.alive(lambda w: w.inbox)
        self.world.workers[names[pick % len(names)]].read()

    @precondition(lambda self: self.world.heard())
    @rule(pick=PICK)
    def deliver(self, pick: int) -> None:
        names = self.world.heard()
        self.world.deliver(names[pick % len(names)])

    @precondition(lambda self: self.world.alive(lambda w: w.may_settle()))
    @rule(pick=PICK, which=PICK, fault=st.sampled_from(Fault))
    def settle(self, pick: int, which: int, fault: Fault) -> None:
        names = self.world.alive(lambda w: w.may_settle())
        self.world.workers[names[pick % len(names)]].settle(which, fault)

    @precondition(lambda self: self.world.alive(lambda w: isinstance(w, SimDecode)))
    @rule(pick=PICK)
    def beat(self, pick: int) -> None:
        names = self.world.alive(lambda w: isinstance(w, SimDecode))
        worker = self.world.workers[names[pick % len(names)]]
        assert isinstance(worker, SimDecode)
        worker.beat()

    # --- faults ------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.world.alive() and not self.world.dead)
    @rule(pick=PICK)
    def kill(self, pick: int) -> None:
        names = self.world.alive()
        name = names[pick % len(names)]
        self.world.dead.add(name)
        self.world.workers[name].inbox.clear()

    @precondition(lambda self: self.world.dead)
    @rule(pick=PICK)
    def notice(self, pick: int) -> None:
        self.world.lose(sorted(self.world.dead)[pick % len(self.world.dead)])

    @precondition(lambda self: self.world.alive())
    @rule(pick=PICK)
    def lose(self, pick: int) -> None:
        """Killed and noticed, and everybody has heard of it, before anything else goes on."""
        names = self.world.alive()
        self.world.lose(names[pick % len(names)])
        for name in self.world.alive():
            while self.world.workers[name].inbox:
                self.world.workers[name].read()

    @precondition(lambda self: len(self.world.workers) < len(self.world.names))
    @rule()
    def rejoin(self) -> None:
        self.world.join(next(name for name in self.world.names if name not in self.world.workers))

    @precondition(lambda self: len(self.world.workers) < len(self.world.names))
    @rule()
    def rejoin_and_link(self) -> None:
        self.rejoin()
        run(self.world, seed=1, count=50)

    # --- the end -----------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        world = getattr(self, "world", None)
        if world is not None and not world.broken:
            come_to_rest(world)


def run(world: World, seed: int, count: int, fault: Fault = Fault.NONE) -> None:
    """Some moves in random order, which bring requests into their later phases; some settle with `fault`."""
    chance = random.Random(seed)
    for _ in range(count):
        moves = world.moves(fault if chance.random() < 0.3 else Fault.NONE)
        if moves:
            chance.choice(moves)(chance)


def come_to_rest(world: World) -> None:
    """The faults stop and lost workers come back: whatever was accepted ends, and nothing stays behind."""
    quarantined = [n for n, w in world.workers.items() if isinstance(w, SimDecode) and w.quarantined_pages]
    for name in {*world.dead, *quarantined}:
        world.lose(name)
    for name in world.names:
        if name not in world.workers:
            world.join(name)
    chance = random.Random(0)
    for _ in range(MAX_ROUNDS):
        while moves := world.moves():
            chance.choice(moves)(chance)
        cell = world.machine.cell
        linked = all(len(p.links) == len(cell.of_role("decode")) for p in cell.of_role("prefill"))
        if linked and not cell.requests:
            break
        world.now += 0.1
        world.feed(Ticked())
    else:
        raise AssertionError(f"does not come to rest: {cell}")
    assert world.ledgers.last_words.keys() == world.asked.keys()
    assert not cell.queue
    assert not cell.link_tests
    for name, worker in world.workers.items():
        record = cell.workers[name]
        assert worker.idle
        assert not record.requests
        assert record.backlog_tokens == 0
        assert not isinstance(worker, SimDecode) or record.free_pages == worker.free_pages == PAGES


TestMachineUnderFaults = MachineUnderFaults.TestCase
TestMachineUnderFaults.settings = settings(max_examples=max(600, settings().max_examples), stateful_step_count=60)
