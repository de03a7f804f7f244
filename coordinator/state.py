"""What does the coordinator know of requests and workers?

Data only. `coordinator.machine` is the sole writer; admission and routing read. No clock, no I/O.
"""

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum

from runtime.description import PoolInfo
from runtime.params import FinishReason, SamplingParams
from runtime.stages import DecodeStages, PrefillStages
from transport.messages.common import KvPeer, Role
from transport.messages.worker import SelfTestDone, TokenStep


class Phase(StrEnum):
    """Where a request is, as its client would see it; it only ever moves down this list."""

    QUEUED = "queued"  # waits for pages on a decode worker and for room where its prompt is computed
    PREFILLING = "prefilling"  # its workers know of it; no token yet
    HANDING_OFF = "handing_off"  # token 1 is out, token 2 is not; never if the decode worker computes the prompt
    DECODING = "decoding"  # the decode worker streams
    FINISHING = "finishing"  # every token is out; the workers' last numbers are not in
    ENDED = "ended"  # the client has had the last word; a worker may still hold pages

    @property
    def is_open(self) -> bool:
        """Tokens may still come."""
        return self not in (Phase.FINISHING, Phase.ENDED)


@dataclass(slots=True)
class RequestRecord:
    """One request from Submit until its client has the last word *and* no worker holds anything of it."""

    request_id: int
    prompt: tuple[int, ...]
    sampling: SamplingParams  # resolved: `max_tokens` and `seed` are set
    submitted_at: float
    deadline: float
    phase: Phase = Phase.QUEUED
    transfer_id: int | None = None
    prefill_worker: str | None = None  # None again once it has let go; None throughout if local
    decode_worker: str | None = None
    local: bool = False  # the decode worker computes the prompt, too: nothing is handed off
    pages: int = 0  # credits spent on the decode worker
    next_index: int = 0  # index of the next token for the client
    early: dict[int, TokenStep] = field(default_factory=dict)  # decode's tokens that overtook prefill's token 1
    early_end: str | None = None  # why one side let go: decode before token 1 was here, or either side of a hand-off
    early_end_at: float = 0.0
    prefill_lost: str | None = None  # what became of the worker that computed the prompt, if it was lost meanwhile
    dispatched_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None  # of those that the client got so far
    handoff_gap_s: float = 0.0
    prefill_stages: PrefillStages | None = None
    decode_stages: DecodeStages | None = None
    finish_reason: FinishReason | None = None
    finished_at: float = 0.0
    served_by: tuple[str, str] = ("", "")  # who computed the prompt and who decoded, kept for the ledger

    @property
    def max_tokens(self) -> int:
        if self.sampling.max_tokens is None:
            raise AssertionError(f"request {self.request_id} was queued without a token limit")
        return self.sampling.max_tokens


@dataclass(slots=True)
class WorkerRecord:
    """One incarnation of a worker."""

    worker_id: str
    role: Role
    peer: KvPeer
    pool: PoolInfo
    max_batch: int
    quarantined_pages: int = 0
    free_pages: int = 0  # decode: credits not spent
    backlog_tokens: int = 0  # prompt tokens sent to be computed here, and not yet computed
    tokens_per_s: float = 0.0  # prefill: measured, 0 until the first prompt has been computed
    requests: set[int] = field(default_factory=set)  # requests that it holds something of
    links: dict[str, SelfTestDone] = field(default_factory=dict)  # prefill: decode workers that passed the self-test


@dataclass(slots=True)
class LinkTest:
    """A self-test under way. The first of a pair warms the connection up, the second is the one that counts."""

    prefill: str
    decode: str
    pages: int
    warm: bool
    waiting_for: set[Role] = field(default_factory=lambda: {"prefill", "decode"})
    measured: SelfTestDone | None = None
    failed: bool = False  # a side reported an error or was lost


@dataclass(slots=True)
class CellState:
    """Everything the coordinator decides on."""

    requests: dict[int, RequestRecord] = field(default_factory=dict)
    queue: deque[int] = field(default_factory=deque)
    workers: dict[str, WorkerRecord] = field(default_factory=dict)
    link_tests: dict[int, LinkTest] = field(default_factory=dict)  # by transfer id
    warm_links: set[tuple[str, str]] = field(default_factory=set)  # passed their first self-test
    failed_links: set[tuple[str, str]] = field(default_factory=set)  # not tested again before the next tick
    absent_since: dict[Role, float] = field(default_factory=dict)  # roles without any worker
    next_transfer_id: int = 0
    draining: bool = False

    def of_role(self, role: Role) -> list[WorkerRecord]:
        return [worker for worker in self.workers.values() if worker.role == role]

    def new_transfer_id(self) -> int:
        self.next_transfer_id += 1
        return self.next_transfer_id
