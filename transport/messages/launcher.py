"""What do the launcher and the coordinator say to each other?

The launcher knows which processes live, the coordinator which of them serve. Each tells the other.
"""

from typing import Annotated

from msgspec import Meta, Struct

from transport.messages.common import Count, Epoch, GigabytesPerSecond, Message, Name, Reason, Role

# --- launcher -> coordinator -----------------------------------------------------------------------------------------


class LauncherHello(Message, frozen=True):
    protocol: int
    prefill_workers: Count
    decode_workers: Count


class WorkerExited(Message, frozen=True):
    """A worker process has ended, however it ended; its transfers can be settled."""

    worker_id: Name


class Drain(Message, frozen=True):
    """Accept no new request, finish the ones in flight, then say `Drained`."""


ToCoordinator = LauncherHello | WorkerExited | Drain

# --- coordinator -> launcher -----------------------------------------------------------------------------------------


class WorkerProgress(Message, frozen=True):
    worker_id: Name
    stage: Annotated[str, Meta(max_length=200)]
    fraction: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None


class WorkerSummary(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    worker_id: Name
    role: Role
    epoch: Epoch
    total_pages: Count
    page_tokens: Count
    page_bytes: Count


class LinkSummary(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One prefill -> decode connection, as its self-test found it."""

    prefill: Name
    decode: Name
    transport: str
    gigabytes_per_s: GigabytesPerSecond
    memcpy_gigabytes_per_s: GigabytesPerSecond
    slow: bool
    staged: bool = False  # pages of GPU memory that go through the host's


class ClusterReady(Message, frozen=True):
    """Every expected worker serves and every pair is connected."""

    model: str
    max_model_len: Count
    workers: tuple[WorkerSummary, ...]
    links: tuple[LinkSummary, ...]
    http_port: Annotated[int, Meta(ge=1, le=65535)] | None = None  # None: no HTTP front


class WorkerRejected(Message, frozen=True):
    worker_id: Name
    reason: Reason


class WorkerExpired(Message, frozen=True):
    """This worker has not spoken for too long: the launcher kills it, so that it cannot come back as a zombie."""

    worker_id: Name


class DrainProgress(Message, frozen=True):
    in_flight: Count


class Drained(Message, frozen=True):
    pass


ToLauncher = WorkerProgress | ClusterReady | WorkerRejected | WorkerExpired | DrainProgress | Drained
