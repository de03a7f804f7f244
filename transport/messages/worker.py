"""What do a worker and the coordinator say to each other?

A worker says `Loading` while it starts, then `Hello`, and is answered by `Welcome` or `Rejected`. After that every
`Admit` and every `Serve` ends in exactly one `Released` from its decode worker and every `Prefill` in exactly one
`PrefillReleased`, whatever happens to the request, unless the worker itself is lost.
"""

from typing import Annotated

from msgspec import Meta, Struct

from runtime.buffers import MemoryKind
from runtime.description import ModelInfo, PoolInfo
from runtime.flight import Part
from runtime.params import FinishReason, SamplingParams
from runtime.stages import DecodeStages, PrefillStages
from runtime.tokens import SampledToken
from transport.messages.common import (
    Count,
    Epoch,
    GigabytesPerSecond,
    KvPeer,
    Message,
    Name,
    Reason,
    RequestId,
    Role,
    Seconds,
    TokenIds,
    TransferId,
)

# --- worker -> coordinator -------------------------------------------------------------------------------------------


class Loading(Message, frozen=True):
    """Where a starting worker is, for the launcher's progress display. `fraction` is None where it is not known."""

    worker_id: Name
    stage: Annotated[str, Meta(max_length=200)]
    fraction: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None


class Hello(Message, frozen=True):
    protocol: int
    role: Role
    peer: KvPeer
    pool: PoolInfo
    model: ModelInfo
    max_batch: Count  # requests that one decode step or prefill batch can hold
    pid: Count


class Heartbeat(Message, frozen=True):
    """Liveness, and what the conservation invariant needs: free + reserved + quarantined = total."""

    free_pages: Count
    reserved_pages: Count
    quarantined_pages: Count
    running: Count
    waiting: Count


class SelfTestDone(Message, frozen=True):
    """Each side's report of a `SelfTest`, when its pages are free again; only the prefill side measures."""

    transfer_id: TransferId
    quarantined_pages: Count
    error: Reason | None = None
    nbytes: Count = 0
    transport: Annotated[str, Meta(max_length=200)] = ""
    memory: MemoryKind = MemoryKind.HOST  # where the pages of the sender are
    gigabytes_per_s: GigabytesPerSecond = 0.0
    memcpy_gigabytes_per_s: GigabytesPerSecond = 0.0


class Prefilled(Message, frozen=True):
    """Token 1, straight to the client; the hand-off of the pages may still be under way."""

    request_id: RequestId
    token: SampledToken
    finish: FinishReason | None  # set when token 1 is also the last


class PrefillReleased(Message, frozen=True):
    """The prefill worker has let go of a request: its pages are free again or quarantined."""

    request_id: RequestId
    quarantined_pages: Count
    stages: PrefillStages | None
    error: Reason | None = None  # why the prefill or its transfer failed; None also for a cancelled one


class TokenStep(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """One request's token of one decode step; `index` counts from 0 at token 1."""

    request_id: RequestId
    index: Count
    token: SampledToken
    finish: FinishReason | None = None


class Tokens(Message, frozen=True):
    """One message per decode step, for the whole batch."""

    steps: tuple[TokenStep, ...]


class Released(Message, frozen=True):
    """The decode worker has let go of a request: `quarantined_pages` of its pages did not come back."""

    request_id: RequestId
    quarantined_pages: Count
    stages: DecodeStages | None
    error: Reason | None = None  # why it failed; None for a finished or cancelled one
    prefill: PrefillStages | None = None  # of a prompt that it has computed itself


class RecordingPart(Message, frozen=True):
    """Part `part` of `parts` of what this worker has recorded; part 0 is empty and says when the recording was taken.

    `reaches_s`: how far back it reaches, if the recorder has dropped what is older.
    """

    timeline_id: Count
    part: Count
    parts: Count
    reaches_s: Seconds | None = None
    events: Part = ()


ToCoordinator = (
    Loading | Hello | Heartbeat | SelfTestDone | Prefilled | PrefillReleased | Tokens | Released | RecordingPart
)

# --- coordinator -> worker -------------------------------------------------------------------------------------------


class Welcome(Message, frozen=True):
    """`heartbeat_s`: how often to beat; `timeout_s`: the silence after which each side takes the other for gone."""

    coordinator_epoch: Epoch
    heartbeat_s: Seconds
    timeout_s: Seconds


class Rejected(Message, frozen=True):
    reason: Reason


class Beat(Message, frozen=True):
    """The coordinator's heartbeat, so that a worker notices its loss."""


class SelfTest(Message, frozen=True):
    """Move `pages` pages once from the prefill worker to the decode worker, over the path that requests will take."""

    transfer_id: TransferId
    peer: KvPeer
    pages: Annotated[int, Meta(ge=1, le=1 << 20)]


class Prefill(Message, frozen=True):
    """Compute a prompt; hand its pages to `peer` under `transfer_id`, or keep them (`peer` None) if token 1 is all."""

    request_id: RequestId
    transfer_id: TransferId
    peer: KvPeer | None
    prompt: TokenIds
    sampling: SamplingParams


class Admit(Message, frozen=True):
    """Reserve `pages` pages, receive the prompt's KV from `peer` under `transfer_id`, then decode from token 2 on.

    Token 1 comes with the end of the transfer; decode never computes it again.
    """

    request_id: RequestId
    transfer_id: TransferId
    peer: KvPeer
    prompt: TokenIds
    sampling: SamplingParams
    pages: Annotated[int, Meta(ge=1, lt=1 << 31)]


class Serve(Message, frozen=True):
    """Reserve `pages` pages, compute the prompt here in chunks beside the steps of the batch, then decode.

    Its tokens come as `Tokens`, token 1 with index 0.
    """

    request_id: RequestId
    prompt: TokenIds
    sampling: SamplingParams
    pages: Annotated[int, Meta(ge=1, lt=1 << 31)]


class CancelRequest(Message, frozen=True):
    """Stop computing this request; never a transfer. Unknown ids are ignored: the request may just have ended."""

    request_id: RequestId


class PeerGone(Message, frozen=True):
    """This incarnation of a worker is dead: its transfers will not go on."""

    worker_id: Name
    epoch: Epoch


class AskRecording(Message, frozen=True):
    """Answered by one `RecordingPart`: part 0 takes the recording of the last `last_s` seconds, the others tell it."""

    timeline_id: Count
    last_s: Seconds
    part: Count


class Shutdown(Message, frozen=True):
    """End the process in good order; sent when nothing is in flight any more."""


ToWorker = (
    Welcome | Rejected | Beat | SelfTest | Prefill | Admit | Serve | CancelRequest | PeerGone | AskRecording | Shutdown
)
