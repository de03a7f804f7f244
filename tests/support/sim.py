"""What would workers answer, whatever the order in which their messages travel?

Models of a prefill and a decode worker for `tests/property/test_machine.py`. They know the messages and nothing of
threads, memory or sockets. Each has an inbox and an outbox that keep their order; between workers there is none. Who
drives them chooses when each reads, computes, settles a transfer and is heard.
"""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto

from coordinator.events import DecodeLetGo, Event, FirstTokenMade, PrefillLetGo, SelfTested, TokensMade
from runtime.params import FinishReason, SamplingParams
from runtime.stages import DecodeStages, PrefillStages
from runtime.tokens import SampledToken
from tests.support.cells import pool
from transport.messages.common import KvPeer
from transport.messages.worker import (
    Admit,
    CancelRequest,
    PeerGone,
    Prefill,
    SelfTest,
    SelfTestDone,
    Serve,
    TokenStep,
    ToWorker,
)


class Sent(Enum):
    """What the sender of a transfer has done."""

    NOTHING = auto()
    ALL = auto()
    ABORTED = auto()


class Fault(Enum):
    """How a transfer may end on one side."""

    NONE = auto()
    FAILED = auto()  # also: a digest that differs
    QUARANTINE = auto()


@dataclass
class Transfer:
    """What both sides of a hand-off share: the wire."""

    sent: Sent = Sent.NOTHING
    expected: bool = False  # the receiver has posted its receives
    faulty: bool = False  # an injected fault hit it on either side


Wire = dict[int, Transfer]


@dataclass(frozen=True)
class Beat:
    """A decode worker's Heartbeat."""

    free_pages: int
    quarantined_pages: int


def sampled(request_id: int, index: int) -> SampledToken:
    """Names its request and its index, so that a lost, doubled or misplaced one shows."""
    return SampledToken(request_id * 1000 + index)


def finish_at(sampling: SamplingParams, index: int, *, eos: bool) -> FinishReason | None:
    if eos:
        return FinishReason.STOP
    return FinishReason.LENGTH if index + 1 == sampling.max_tokens else None


@dataclass
class SimPrefill:
    """A prefill worker: prompts, and transfers that outlive them."""

    peer: KvPeer
    wire: Wire
    inbox: deque[ToWorker] = field(default_factory=deque)
    outbox: deque[Event | Beat] = field(default_factory=deque)
    prompts: dict[int, Prefill] = field(default_factory=dict)
    sending: dict[int, Prefill | SelfTest] = field(default_factory=dict)  # by transfer id
    gone: set[tuple[str, int]] = field(default_factory=set)

    def read(self) -> None:
        match self.inbox.popleft():
            case Prefill() as order:
                assert order.request_id not in self.prompts
                self.prompts[order.request_id] = order
            case SelfTest() as test:
                self._transfer(test.transfer_id).sent = Sent.ALL
                self.sending[test.transfer_id] = test
            case CancelRequest(request_id=request_id) if request_id in self.prompts:
                self._leave(self.prompts.pop(request_id), Sent.ABORTED, None)
            case PeerGone(worker_id=worker_id, epoch=epoch):
                self.gone.add((worker_id, epoch))

    def compute(self, pick: int, *, eos: bool) -> FinishReason | None:
        """The last chunk of one prompt."""
        request_id = sorted(self.prompts)[pick % len(self.prompts)]
        order = self.prompts.pop(request_id)
        finish = finish_at(order.sampling, 0, eos=eos)
        self.outbox.append(FirstTokenMade(self.peer.worker_id, request_id, sampled(request_id, 0), finish))
        stages = PrefillStages(queue_s=0.0, compute_s=0.01 * (pick + 1), chunks=1)
        self._leave(order, Sent.ALL if finish is None else Sent.ABORTED, stages)
        return finish

    def _leave(self, order: Prefill, sent: Sent, stages: PrefillStages | None) -> None:
        if order.peer is None:
            self.outbox.append(PrefillLetGo(self.peer.worker_id, order.request_id, 0, stages, None))
        else:
            self._transfer(order.transfer_id).sent = sent
            self.sending[order.transfer_id] = order

    def may_settle(self) -> list[int]:
        return sorted(
            transfer_id
            for transfer_id, what in self.sending.items()
            if self._may_settle(self.wire[transfer_id], what.peer)
        )

    def _may_settle(self, transfer: Transfer, peer: KvPeer | None) -> bool:
        return transfer.expected or transfer.sent is Sent.ABORTED or _is_gone(peer, self.gone)

    def settle(self, pick: int, fault: Fault) -> None:
        transfer_id = self.may_settle()[pick % len(self.may_settle())]
        what, transfer = self.sending.pop(transfer_id), self.wire[transfer_id]
        transfer.faulty |= fault is not Fault.NONE
        unexpected = not transfer.expected and transfer.sent is Sent.ALL
        error = "the transfer failed" if fault is not Fault.NONE or unexpected else None
        pages = _prompt_pages(what) if fault is Fault.QUARANTINE else 0
        if isinstance(what, SelfTest):
            report = SelfTestDone(transfer_id=transfer_id, quarantined_pages=pages, error=error)
            self.outbox.append(SelfTested(self.peer.worker_id, report))
        else:
            stages = PrefillStages(queue_s=0.0, compute_s=0.01, chunks=1) if transfer.sent is Sent.ALL else None
            self.outbox.append(PrefillLetGo(self.peer.worker_id, what.request_id, pages, stages, error))

    def _transfer(self, transfer_id: int) -> Transfer:
        return self.wire.setdefault(transfer_id, Transfer())

    @property
    def idle(self) -> bool:
        return not (self.inbox or self.outbox or self.prompts or self.sending)


@dataclass
class SimDecode:
    """A decode worker: pages, transfers that arrive, prompts of its own, sequences that run."""

    peer: KvPeer
    wire: Wire
    total_pages: int
    inbox: deque[ToWorker] = field(default_factory=deque)
    outbox: deque[Event | Beat] = field(default_factory=deque)
    held: dict[int, int] = field(default_factory=dict)  # pages by `_owner`
    quarantined_pages: int = 0
    arriving: dict[int, Admit | SelfTest] = field(default_factory=dict)  # by transfer id
    cancelled: set[int] = field(default_factory=set)
    prompts: dict[int, Serve] = field(default_factory=dict)  # computed here
    running: dict[int, tuple[Admit | Serve, int]] = field(default_factory=dict)  # index of the next token
    gone: set[tuple[str, int]] = field(default_factory=set)

    @property
    def free_pages(self) -> int:
        return self.total_pages - self.quarantined_pages - sum(self.held.values())

    def read(self) -> None:
        match self.inbox.popleft():
            case (Admit() | SelfTest()) as order:
                self._hold(order)
                self.wire.setdefault(order.transfer_id, Transfer()).expected = True
                self.arriving[order.transfer_id] = order
            case Serve() as order:
                self._hold(order)
                self.prompts[order.request_id] = order
            case CancelRequest(request_id=request_id):
                self._cancel(request_id)
            case PeerGone(worker_id=worker_id, epoch=epoch):
                self.gone.add((worker_id, epoch))

    def _hold(self, order: Admit | SelfTest | Serve) -> None:
        assert order.pages <= self.free_pages, "the coordinator has spent pages that are not there"
        self.held[_owner(order)] = order.pages

    def _cancel(self, request_id: int) -> None:
        if request_id in self.running:
            order, _ = self.running.pop(request_id)
            self._let_go(order, None, Fault.NONE)
        elif request_id in self.prompts:
            self._let_go(self.prompts.pop(request_id), None, Fault.NONE)
        elif any(isinstance(a, Admit) and a.request_id == request_id for a in self.arriving.values()):
            self.cancelled.add(request_id)

    def may_settle(self) -> list[int]:
        return sorted(
            transfer_id
            for transfer_id, order in self.arriving.items()
            if self.wire[transfer_id].sent is not Sent.NOTHING or _is_gone(order.peer, self.gone)
        )

    def settle(self, pick: int, fault: Fault) -> None:
        transfer_id = self.may_settle()[pick % len(self.may_settle())]
        order, transfer = self.arriving.pop(transfer_id), self.wire[transfer_id]
        transfer.faulty |= fault is not Fault.NONE
        # Whether prefill had let go or not: the last pages of one that is gone may have died with it.
        ok = transfer.sent is Sent.ALL and fault is Fault.NONE and not _is_gone(order.peer, self.gone)
        if isinstance(order, SelfTest):
            pages = self._free(order, fault)
            error = None if ok else "the transfer failed"
            report = SelfTestDone(transfer_id=transfer_id, quarantined_pages=pages, error=error)
            self.outbox.append(SelfTested(self.peer.worker_id, report))
        elif order.request_id in self.cancelled:
            self.cancelled.discard(order.request_id)
            self._let_go(order, None, fault)
        elif ok:
            self.running[order.request_id] = (order, 1)
        else:
            self._let_go(order, "the transfer failed", fault)

    def compute(self, pick: int, *, eos: bool, fails: bool) -> FinishReason | None:
        """The last chunk of one prompt; `fails` is a row without a token."""
        request_id = sorted(self.prompts)[pick % len(self.prompts)]
        order = self.prompts.pop(request_id)
        if fails:
            self._let_go(order, "no token 1", Fault.NONE)
            return None
        self.running[request_id] = (order, 0)
        return self._step([request_id], int(eos)).get(request_id)

    def step(self, eos: int) -> dict[int, FinishReason]:
        """One token for every sequence; those whose bit in `eos` is set draw the end-of-sequence token."""
        return self._step(sorted(self.running), eos)

    def _step(self, request_ids: list[int], eos: int) -> dict[int, FinishReason]:
        steps: list[TokenStep] = []
        finished: dict[int, FinishReason] = {}
        for bit, request_id in enumerate(request_ids):
            order, index = self.running[request_id]
            finish = finish_at(order.sampling, index, eos=bool(eos >> bit & 1))
            steps.append(TokenStep(request_id, index, sampled(request_id, index), finish))
            self.running[request_id] = (order, index + 1)
            if finish is not None:
                finished[request_id] = finish
        self.outbox.append(TokensMade(self.peer.worker_id, tuple(steps)))
        for request_id in finished:
            order, _ = self.running.pop(request_id)
            self._let_go(order, None, Fault.NONE)
        return finished

    def beat(self) -> None:
        self.outbox.append(Beat(self.free_pages, self.quarantined_pages))

    def _let_go(self, order: Admit | Serve, error: str | None, fault: Fault) -> None:
        pages = self._free(order, fault)
        self.outbox.append(DecodeLetGo(self.peer.worker_id, order.request_id, pages, DecodeStages(), error))

    def _free(self, order: Admit | SelfTest | Serve, fault: Fault) -> int:
        """Give the pages of an order back, or up; how many were given up."""
        pages = self.held.pop(_owner(order))
        if fault is not Fault.QUARANTINE:
            return 0
        self.quarantined_pages += pages
        return pages

    @property
    def idle(self) -> bool:
        return not (self.inbox or self.outbox or self.arriving or self.prompts or self.running)


def _owner(order: Admit | SelfTest | Serve) -> int:
    """A number of its own for everything that holds pages; transfer ids are not negative."""
    return -1 - order.request_id if isinstance(order, Serve) else order.transfer_id


def _is_gone(peer: KvPeer | None, gone: set[tuple[str, int]]) -> bool:
    return peer is not None and (peer.worker_id, peer.epoch) in gone


def _prompt_pages(what: Prefill | SelfTest) -> int:
    return what.pages if isinstance(what, SelfTest) else -(-len(what.prompt) // pool(1).page_tokens)
