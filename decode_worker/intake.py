"""How does a request get from Admit into the running batch?

Reserve its pages, post the receives into them, wait for every piece and the trailer, compare the digest of every page
with what the prefill worker computed before sending, and only then let it decode: fail closed (ADR-0004).
"""

from dataclasses import dataclass

import msgspec

from engine.port import EnginePort
from engine.thread import EngineThread
from runtime.clock import Clock
from transport.kv import Inbound
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


async def take_in(
    admit: Admit,
    inbound: Inbound,
    prompt_pages: tuple[int, ...],
    engine: EnginePort,
    thread: EngineThread,
    clock: Clock,
) -> Received:
    """Wait for the pages of `admit` and check them; never raises for what the peer did."""
    started = clock.now()
    outcome = await inbound.settled()
    arrived = clock.now()
    if not outcome.ok:
        return Received(None, outcome.error or "the transfer failed", outcome.quarantine, arrived - started, 0.0)
    digests = await thread.run(engine.digest, prompt_pages)
    verify_s = clock.now() - arrived
    bad = first_difference(digests, outcome.digests)
    if bad is not None:
        error = f"page {bad} of {len(prompt_pages)} of request {admit.request_id} differs from what was sent"
        return Received(None, error, quarantine=False, intake_s=arrived - started, verify_s=verify_s)
    try:
        token = msgspec.msgpack.decode(outcome.note, type=int)
    except msgspec.MsgspecError as error:
        return Received(
            None, f"token 1 of request {admit.request_id} is no token: {error}", False, arrived - started, verify_s
        )
    return Received(token, None, quarantine=False, intake_s=arrived - started, verify_s=verify_s)


def first_difference(ours: bytes, theirs: bytes) -> int | None:
    """Index of the first page whose digests differ; a missing digest is a difference."""
    for page in range(max(len(ours), len(theirs)) // _DIGEST_BYTES):
        here = slice(page * _DIGEST_BYTES, (page + 1) * _DIGEST_BYTES)
        if ours[here] != theirs[here]:
            return page
    return None if len(ours) == len(theirs) else len(ours) // _DIGEST_BYTES
