"""What must hold of the coordinator's state after every event, and how does a test get a cell that is ready to serve?

`Ledgers` watches one `Machine` from outside: it remembers what the client was told and what the workers were sent, and
compares that with the state. `Cell` is a machine with workers that have joined and are linked.
"""

from collections import Counter
from dataclasses import dataclass, field, replace

from coordinator.admission import AdmissionLimits
from coordinator.events import (
    Action,
    DecodeLetGo,
    Emit,
    Event,
    Fail,
    Finish,
    FirstTokenMade,
    PrefillLetGo,
    SelfTested,
    Submitted,
    Tell,
    Ticked,
    TokensMade,
    WorkerJoined,
)
from coordinator.local_prefill import LocalPrefill
from coordinator.machine import FINISH_GRACE_S, Machine
from coordinator.state import CellState, Phase, RequestRecord, WorkerRecord
from runtime.description import PoolInfo
from runtime.params import FinishReason, SamplingParams
from runtime.stages import DecodeStages, PrefillStages
from runtime.tokens import SampledToken
from transport.messages.common import KvPeer, Role
from transport.messages.worker import Admit, CancelRequest, Prefill, SelfTest, SelfTestDone, Serve, TokenStep, ToWorker

LIMITS = AdmissionLimits(max_queued_requests=100, max_queued_tokens=10_000, prefill_backlog_tokens=10_000)
AGGREGATED = replace(LIMITS, local=LocalPrefill(aggregated=True, backlog_tokens=10_000))
_PHASES = list(Phase)


def peer(worker_id: str, epoch: int = 1) -> KvPeer:
    return KvPeer(worker_id=worker_id, epoch=epoch, address=b"kv:" + worker_id.encode(), host_id="host")


def pool(total_pages: int, page_tokens: int = 4, page_bytes: int = 1 << 20) -> PoolInfo:
    return PoolInfo(fingerprint="same", page_tokens=page_tokens, page_bytes=page_bytes, total_pages=total_pages)


def worker(worker_id: str, role: Role, total_pages: int = 64, max_batch: int = 8) -> WorkerRecord:
    """A worker as the machine would hold it right after it joined."""
    return WorkerRecord(worker_id, role, peer(worker_id), pool(total_pages), max_batch, free_pages=total_pages)


def request(request_id: int, prompt_tokens: int, max_tokens: int) -> RequestRecord:
    sampling = SamplingParams(max_tokens=max_tokens, seed=0)
    return RequestRecord(request_id, tuple(range(prompt_tokens)), sampling, submitted_at=0.0, deadline=1000.0)


@dataclass
class Ledgers:
    """What left the machine so far; `check` compares it with the state."""

    phases: dict[int, Phase] = field(default_factory=dict)
    emitted: dict[int, list[int]] = field(default_factory=dict)  # token ids by request
    last_words: dict[int, Finish | Fail] = field(default_factory=dict)
    transfers: Counter[int] = field(default_factory=Counter)
    submitted: set[int] = field(default_factory=set)

    def check(self, cell: CellState, event: Event, actions: list[Action]) -> None:
        if isinstance(event, Submitted):
            self.submitted.add(event.request_id)
        for action in actions:
            self._note(cell, action)
        self._check_cancelled(cell, actions)
        self._check_requests(cell)
        check_queue(cell)
        for record in cell.workers.values():
            check_worker(cell, record)
        check_link_tests(cell)

    def _note(self, cell: CellState, action: Action) -> None:
        match action:
            case Tell(worker_id, message):
                assert worker_id in cell.workers, "a message for a worker that is not there"
                self._note_message(cell.workers[worker_id].role, message)
            case Emit(request_id, index, tokens):
                tokens_so_far = self.emitted.setdefault(request_id, [])
                assert request_id not in self.last_words, "tokens after the last word"
                assert index == len(tokens_so_far), "token indices are contiguous"
                tokens_so_far += [token.token_id for token in tokens]
            case Finish(request_id) | Fail(request_id):
                assert request_id in self.submitted, "a last word for a request that nobody sent"
                assert request_id not in self.last_words, "two last words"
                self.last_words[request_id] = action

    def _note_message(self, role: Role, message: ToWorker) -> None:
        match message:
            case Prefill() | Admit() | SelfTest():
                self.transfers[message.transfer_id] += 1
                assert self.transfers[message.transfer_id] <= 2, "a transfer has one sender and one receiver"
        match message:
            case Prefill():
                assert role == "prefill"
            case Admit() | Serve():
                assert role == "decode"

    def _check_cancelled(self, cell: CellState, actions: list[Action]) -> None:
        """Who still computes for a request when it ends is told to stop."""
        for request_id, before in self.phases.items():
            record = cell.requests.get(request_id)
            if before.is_open and record is not None and record.phase is Phase.ENDED:
                for holder in {record.prefill_worker, record.decode_worker} - {None}:
                    assert (holder, CancelRequest(request_id=request_id)) in told(actions)

    def _check_requests(self, cell: CellState) -> None:
        for request_id in self.submitted:
            record = cell.requests.get(request_id)
            ended = record is None or record.phase is Phase.ENDED
            assert ended == (request_id in self.last_words), "ENDED means that the client has had the last word"
            if record is not None:
                check_request(cell, record)
                before = self.phases.get(request_id, Phase.QUEUED)
                assert _PHASES.index(record.phase) >= _PHASES.index(before), f"{before} -> {record.phase}"
                self.phases[request_id] = record.phase
                assert record.next_index == len(self.emitted.get(request_id, []))
        assert cell.requests.keys() <= self.submitted


def check_request(cell: CellState, record: RequestRecord) -> None:
    holders = {worker.worker_id for worker in cell.workers.values() if record.request_id in worker.requests}
    assert holders == {record.prefill_worker, record.decode_worker} - {None}, "the two sides of holding disagree"
    if record.phase is Phase.ENDED:
        assert holders, "a request that is over everywhere is forgotten"
        assert not record.early
    if record.phase is Phase.FINISHING:
        assert holders, "nobody is left to wait for"
        assert record.finish_reason is not None
    if record.phase is Phase.QUEUED:
        assert not holders
    if record.phase is Phase.PREFILLING:
        assert (record.decode_worker if record.local else record.prefill_worker) is not None
    if record.local:
        assert record.prefill_worker is None
        assert record.phase not in (Phase.QUEUED, Phase.HANDING_OFF)
        assert record.transfer_id is None
        assert not record.early, "one worker makes all tokens, in order"


def check_queue(cell: CellState) -> None:
    queued = [record.request_id for record in cell.requests.values() if record.phase is Phase.QUEUED]
    assert sorted(cell.queue) == sorted(queued)


def check_worker(cell: CellState, worker: WorkerRecord) -> None:
    held = [cell.requests[request_id] for request_id in worker.requests]  # a KeyError is a broken invariant, too
    computing = [record for record in held if record.local == (worker.role == "decode")]
    assert worker.backlog_tokens == sum(len(record.prompt) for record in computing if record.first_token_at is None)
    if worker.role == "decode":
        testing = sum(
            test.pages
            for test in cell.link_tests.values()
            if test.decode == worker.worker_id and "decode" in test.waiting_for
        )
        spent = sum(record.pages for record in held)
        assert worker.free_pages >= 0
        assert worker.free_pages + spent + testing + worker.quarantined_pages == worker.pool.total_pages
        assert len(held) <= worker.max_batch
    else:
        assert all(cell.workers[decode].role == "decode" for decode in worker.links)


def check_link_tests(cell: CellState) -> None:
    pairs = [(test.prefill, test.decode) for test in cell.link_tests.values()]
    assert len(pairs) == len(set(pairs)), "one test per pair at a time"
    for test in cell.link_tests.values():
        assert test.waiting_for, "a test that nobody will report on is never over"
        sides = {"prefill": test.prefill, "decode": test.decode}
        assert all(sides[role] in cell.workers for role in test.waiting_for)
        assert test.failed or set(sides.values()) <= cell.workers.keys()


class Cell:
    """A machine whose invariants are checked after every event; ready to serve unless told otherwise."""

    def __init__(
        self,
        prefill: int = 1,
        decode: int = 1,
        *,
        pages: int = 64,
        max_batch: int = 8,
        limits: AdmissionLimits = LIMITS,
        link: bool = True,
    ) -> None:
        self.machine = Machine(limits)
        self.ledgers = Ledgers()
        self.now = 100.0
        self._next_request_id = 0
        self._pages = pages
        self._max_batch = max_batch
        started = [action for number in range(decode) for action in self.join(f"d{number}")]
        started += [action for number in range(prefill) for action in self.join(f"p{number}")]
        if link:
            self.link(started)

    @property
    def state(self) -> CellState:
        return self.machine.cell

    def feed(self, event: Event) -> list[Action]:
        actions = self.machine.handle(event, self.now)
        self.ledgers.check(self.state, event, actions)
        return actions

    def link(self, started: list[Action]) -> None:
        """Let every self-test among these actions, and those that follow from it, succeed."""
        while started:
            tests = [action for action in started if isinstance(action, Tell) and isinstance(action.message, SelfTest)]
            started = [action for test in tests for action in self.self_tested(test)]

    # --- events, in the words of the tests ---------------------------------------------------------------------------

    def join(self, worker_id: str, epoch: int = 1, pages: int | None = None) -> list[Action]:
        role: Role = "prefill" if worker_id.startswith("p") else "decode"
        return self.feed(WorkerJoined(role, peer(worker_id, epoch), pool(pages or self._pages), self._max_batch))

    def self_tested(self, told: Action, error: str | None = None) -> list[Action]:
        """The worker that was sent this `SelfTest` reports that it is done."""
        assert isinstance(told, Tell)
        assert isinstance(told.message, SelfTest)
        report = SelfTestDone(
            transfer_id=told.message.transfer_id, quarantined_pages=0, error=error, transport="shm", gigabytes_per_s=9.0
        )
        return self.feed(SelfTested(told.worker_id, report))

    def submit(self, prompt_tokens: int = 8, max_tokens: int = 4, timeout_s: float = 60.0) -> tuple[int, list[Action]]:
        request_id = self._next_request_id
        self._next_request_id += 1
        sampling = SamplingParams(max_tokens=max_tokens, seed=0)
        return request_id, self.feed(Submitted(request_id, tuple(range(prompt_tokens)), sampling, timeout_s))

    def start(self, prompt_tokens: int = 8, max_tokens: int = 4, timeout_s: float = 60.0) -> int:
        """A request that is dispatched at once."""
        request_id, _ = self.submit(prompt_tokens, max_tokens, timeout_s)
        assert self.record(request_id).phase is Phase.PREFILLING
        return request_id

    def first_token(self, request_id: int, finish: FinishReason | None = None, by: str = "p0") -> list[Action]:
        return self.feed(FirstTokenMade(by, request_id, token(0), finish))

    def token(self, request_id: int, index: int, finish: FinishReason | None = None, by: str = "d0") -> list[Action]:
        return self.feed(TokensMade(by, (TokenStep(request_id, index, token(index), finish),)))

    def prefill_lets_go(
        self, request_id: int, error: str | None = None, by: str = "p0", compute_s: float = 0.0, quarantined: int = 0
    ) -> list[Action]:
        stages = PrefillStages(queue_s=0.0, compute_s=compute_s, chunks=1) if error is None else None
        return self.feed(PrefillLetGo(by, request_id, quarantined, stages, error))

    def decode_lets_go(
        self, request_id: int, error: str | None = None, by: str = "d0", quarantined: int = 0
    ) -> list[Action]:
        stages = DecodeStages(steps=3) if error is None else None
        prefill = None
        if self.record(request_id).local and error is None:
            prefill = PrefillStages(queue_s=0.0, compute_s=0.5, chunks=2)
        return self.feed(DecodeLetGo(by, request_id, quarantined, stages, error, prefill))

    def grace_over(self) -> list[Action]:
        """Nobody was lost in the time that a failed hand-off waits for such news."""
        self.now += FINISH_GRACE_S + 0.01
        return self.feed(Ticked())

    # --- looking -----------------------------------------------------------------------------------------------------

    def record(self, request_id: int) -> RequestRecord:
        return self.state.requests[request_id]

    def worker(self, worker_id: str) -> WorkerRecord:
        return self.state.workers[worker_id]

    def emitted(self, request_id: int) -> list[int]:
        return self.ledgers.emitted.get(request_id, [])

    def last_word(self, request_id: int) -> Finish | Fail | None:
        return self.ledgers.last_words.get(request_id)


def token(index: int) -> SampledToken:
    """Token number `index` of any request of these tests, so that a lost or doubled one shows."""
    return SampledToken(1000 + index)


def told(actions: list[Action]) -> list[tuple[str, ToWorker]]:
    return [(action.worker_id, action.message) for action in actions if isinstance(action, Tell)]


def failed(cell: Cell, request_id: int) -> Fail:
    last = cell.last_word(request_id)
    assert isinstance(last, Fail)
    return last


def finished(cell: Cell, request_id: int) -> Finish:
    last = cell.last_word(request_id)
    assert isinstance(last, Finish)
    return last


def decoding(cell: Cell, max_tokens: int = 4) -> int:
    request_id = cell.start(max_tokens=max_tokens)
    cell.first_token(request_id)
    cell.prefill_lets_go(request_id)
    cell.token(request_id, 1)
    return request_id
