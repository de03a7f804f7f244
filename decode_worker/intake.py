"""How does a request get from Admit into the running batch?

Reserve its pages, post the receives into them, wait for every piece and the trailer, compare the digest of every page
with what the prefill worker computed before sending, and only then let it decode: fail closed (ADR-0004).
"""

from dataclasses import dataclass

import msgspec

from engine.port import EnginePort
from engine.thread import EngineThread
from runtime.buffers import MemoryKind
from runtime.clock import Clock
from runtime.stages import DecodeStages
from transport.kv import Inbound, ReceiveOutcome
from transport.messages.worker import Admit

_DIGEST_BYTES = 8


@dataclass(frozen=True, slots=True)
class Received:
    """The end of an intake: a token 1 to go on from, or the reason why there is none."""

    first_token: int | None
    error: str | None
    quarantine: bool
    intake_s: float
    verify_s: float
    verify_wait_s: float
    ended_at: float

    @property
    def stages(self) -> DecodeStages:
        return DecodeStages(intake_s=self.intake_s, verify_s=self.verify_s, verify_wait_s=self.verify_wait_s)


async def take_in(  # noqa: PLR0913 - plain values
    admit: Admit,
    inbound: Inbound,
    prompt_pages: tuple[int, ...],
    engine: EnginePort,
    thread: EngineThread,
    clock: Clock,
    *,
    started: float,
) -> Received:
    """Wait for the pages of `admit`, which came at `started`, and check them; never raises for what the peer did.

    Raises:
        Exception: whatever the engine raises on a GPU that is lost, which ends the worker (ADR-0008).
    """
    outcome = await inbound.settled()
    arrived = clock.now()
    intake_s = arrived - started
    if not outcome.ok:
        await _touch_device(engine, thread, prompt_pages[:1])
        return Received(None, outcome.error or "the transfer failed", outcome.quarantine, intake_s, 0.0, 0.0, arrived)
    digests, computing_s = await thread.run_timed(clock, engine.digest, prompt_pages)
    token, error = _token_1(admit, outcome, len(prompt_pages), digests)
    ended = clock.now()
    verify_s = ended - arrived
    return Received(
        first_token=token,
        error=error,
        quarantine=False,
        intake_s=intake_s,
        verify_s=verify_s,
        verify_wait_s=max(verify_s - computing_s, 0.0),
        ended_at=ended,
    )


async def _touch_device(engine: EnginePort, thread: EngineThread, page: tuple[int, ...]) -> None:
    """Compute something on the GPU, if that is where pages are.

    To UCX a lost CUDA context looks like a transfer that failed. A worker that only receives would then fail request
    after request and never take a step in which it would notice.
    """
    if engine.regions(page)[0].kind is MemoryKind.CUDA:
        await thread.run(engine.digest, page)


def _token_1(admit: Admit, outcome: ReceiveOutcome, pages: int, digests: bytes) -> tuple[int | None, str | None]:
    """Token 1, or why the request cannot go on from it."""
    bad = first_difference(digests, outcome.digests)
    if bad is not None:
        return None, f"page {bad} of {pages} of request {admit.request_id} differs from what was sent"
    try:
        return msgspec.msgpack.decode(outcome.note, type=int), None
    except msgspec.MsgspecError as error:
        return None, f"token 1 of request {admit.request_id} is no token: {error}"


def first_difference(ours: bytes, theirs: bytes) -> int | None:
    """Index of the first page whose digests differ; a missing digest is a difference."""
    for page in range(max(len(ours), len(theirs)) // _DIGEST_BYTES):
        here = slice(page * _DIGEST_BYTES, (page + 1) * _DIGEST_BYTES)
        if ours[here] != theirs[here]:
            return page
    return None if len(ours) == len(theirs) else len(ours) // _DIGEST_BYTES
