"""What can happen to a cell, and what can the coordinator do about it?

Events go into `machine.handle`, actions come out. Both are values: a test is a list of events and a list of actions.
"""

from dataclasses import dataclass

from runtime.description import PoolInfo
from runtime.params import FinishReason, SamplingParams
from runtime.stages import DecodeStages, Ledger, PrefillStages
from runtime.tokens import SampledToken
from transport.messages.client import FailureCode
from transport.messages.common import KvPeer, Role
from transport.messages.worker import SelfTestDone, TokenStep, ToWorker

# --- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Submitted:
    request_id: int
    prompt: tuple[int, ...]
    sampling: SamplingParams
    timeout_s: float


@dataclass(frozen=True, slots=True)
class CancelAsked:
    """The client does not want the rest, or is gone."""

    request_id: int


@dataclass(frozen=True, slots=True)
class StopStringFound:
    """The text of a request contains one of its stop strings."""

    request_id: int


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    role: Role
    peer: KvPeer
    pool: PoolInfo
    max_batch: int


@dataclass(frozen=True, slots=True)
class WorkerLost:
    worker_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class SelfTested:
    worker_id: str
    report: SelfTestDone


@dataclass(frozen=True, slots=True)
class FirstTokenMade:
    worker_id: str
    request_id: int
    token: SampledToken
    finish: FinishReason | None


@dataclass(frozen=True, slots=True)
class PrefillLetGo:
    worker_id: str
    request_id: int
    quarantined_pages: int
    stages: PrefillStages | None
    error: str | None


@dataclass(frozen=True, slots=True)
class TokensMade:
    worker_id: str
    steps: tuple[TokenStep, ...]


@dataclass(frozen=True, slots=True)
class DecodeLetGo:
    worker_id: str
    request_id: int
    quarantined_pages: int
    stages: DecodeStages | None
    error: str | None
    prefill: PrefillStages | None = None  # of a prompt that the decode worker has computed itself


@dataclass(frozen=True, slots=True)
class DrainAsked:
    pass


@dataclass(frozen=True, slots=True)
class Stopped:
    """The coordinator ends now, whatever is in flight."""


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed; deadlines are looked at."""


Event = (
    Submitted
    | CancelAsked
    | StopStringFound
    | WorkerJoined
    | WorkerLost
    | SelfTested
    | FirstTokenMade
    | PrefillLetGo
    | TokensMade
    | DecodeLetGo
    | DrainAsked
    | Stopped
    | Ticked
)

# --- actions ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tell:
    """Send a message to a worker."""

    worker_id: str
    message: ToWorker


@dataclass(frozen=True, slots=True)
class Emit:
    """Tokens for the client, with contiguous indices over all `Emit`s of a request; `finish` comes with the last."""

    request_id: int
    index: int
    tokens: tuple[SampledToken, ...]
    finish: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class Finish:
    """The last word to the client: the request ended well."""

    request_id: int
    reason: FinishReason
    ledger: Ledger


@dataclass(frozen=True, slots=True)
class Fail:
    """The last word to the client: the request could not be served."""

    request_id: int
    code: FailureCode
    message: str


Action = Tell | Emit | Finish | Fail
