"""Do the pages of a prompt leave in order, with token 1 behind the last, and does every hand-off settle?"""

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from prefill_worker.handoff import HandOff, HandOffResult, decline
from runtime.clock import SystemClock
from runtime.params import SamplingParams
from runtime.stages import PrefillStages
from tests.support.kv_pair import LAYOUT, Pair, engine, filled, page_bytes, pair
from transport.kv import Inbound, ReceiveOutcome
from transport.loopback import Faults
from transport.messages.worker import Prefill

PROMPT = tuple(range(1, 11))
PAGES = (9, 2, 3)
INTO = (0, 1, 2)

Drive = Callable[[HandOff, bytes], Awaitable[None]]


def hand_off(drive: Drive, faults: Faults | None = None) -> tuple[HandOffResult, ReceiveOutcome, bytes]:
    """What both sides conclude, and what arrived."""
    source, target = filled(PROMPT, PAGES), engine()

    async def both() -> tuple[HandOffResult, ReceiveOutcome]:
        ports = pair(faults)
        inbound = ports.decode.expect(7, ports.prefill.peer, target.regions(INTO))
        outbound = ports.prefill.send(7, ports.decode.peer, source.regions(PAGES))
        handoff = HandOff(outbound, LAYOUT.page_bytes, len(PAGES))
        try:
            async with asyncio.timeout(10):
                await drive(handoff, source.digest(PAGES))
                return await handoff.settled(SystemClock()), await inbound.settled()
        finally:
            ports.close()

    result, outcome = asyncio.run(both())
    return result, outcome, b"".join(page_bytes(target, page) for page in INTO)


async def chunk_by_chunk(handoff: HandOff, digests: bytes) -> None:
    for page in range(len(PAGES)):
        handoff.pages_done(digests[8 * page : 8 * page + 8])
        await asyncio.sleep(0.01)
    handoff.complete(97, SystemClock().now())


def test_pages_leave_chunk_by_chunk_and_token_1_behind_them() -> None:
    result, outcome, arrived = hand_off(chunk_by_chunk)
    source = filled(PROMPT, PAGES)
    assert arrived == b"".join(page_bytes(source, page) for page in PAGES)
    assert outcome.ok
    assert outcome.digests == source.digest(PAGES)
    assert msgspec.msgpack.decode(outcome.note) == 97
    assert (result.error, result.quarantine, result.nbytes) == (None, False, 3 * LAYOUT.page_bytes)
    assert 0 < result.seconds < 10
    assert 0 <= result.tail_s < 10


def test_what_was_measured_joins_the_stages_of_the_prompt() -> None:
    result = HandOffResult(None, quarantine=False, nbytes=384, pieces=2, seconds=0.5, tail_s=0.125, first_piece_at=7.25)
    stages = result.add_to(PrefillStages(queue_s=1.0, compute_s=2.0, chunks=3), started_at=7.0)
    assert stages == PrefillStages(
        queue_s=1.0,
        compute_s=2.0,
        chunks=3,
        transfer_s=0.5,
        transfer_first_s=0.25,
        transfer_tail_s=0.125,
        transfer_bytes=384,
        pieces=2,
    )


def test_an_abandoned_hand_off_settles_without_an_error_here_and_with_its_reason_there() -> None:
    async def half(handoff: HandOff, digests: bytes) -> None:
        handoff.pages_done(digests[:8])
        handoff.abandon("cancelled")

    result, outcome, _ = hand_off(half)
    assert (result.error, result.quarantine, result.tail_s) == (None, False, 0.0)
    assert (outcome.ok, outcome.error, outcome.quarantine) == (False, "cancelled", False)


def test_a_failed_piece_is_an_error_on_both_sides() -> None:
    result, outcome, _ = hand_off(chunk_by_chunk, Faults(fail_data=frozenset({0})))
    assert result.error is not None
    assert not result.quarantine
    assert not outcome.ok


@pytest.mark.parametrize("pages", [0, 1, 2])
def test_token_1_does_not_leave_before_every_page_has_a_digest(pages: int) -> None:
    async def early(handoff: HandOff, digests: bytes) -> None:
        handoff.pages_done(digests[: 8 * pages])
        with pytest.raises(AssertionError, match=f"{pages} of 3 pages"):
            handoff.complete(97, 0.0)
        handoff.abandon("a broken invariant")

    hand_off(early)


def order(ports: Pair, *, with_peer: bool) -> Prefill:
    return Prefill(
        request_id=1,
        transfer_id=7,
        peer=ports.decode.peer if with_peer else None,
        prompt=PROMPT,
        sampling=SamplingParams(max_tokens=4, seed=0),
    )


def test_a_prompt_that_never_starts_is_declined() -> None:
    async def both() -> ReceiveOutcome:
        ports = pair()
        inbound: Inbound = ports.decode.expect(7, ports.prefill.peer, engine().regions(INTO))
        try:
            async with asyncio.timeout(10):
                await decline(ports.prefill, order(ports, with_peer=True))
                return await inbound.settled()
        finally:
            ports.close()

    outcome = asyncio.run(both())
    assert (outcome.ok, outcome.error, outcome.quarantine) == (False, "cancelled", False)


def test_there_is_nobody_to_decline_to_without_a_hand_off() -> None:
    async def alone() -> None:
        ports = pair()
        async with asyncio.timeout(10):
            await decline(ports.prefill, order(ports, with_peer=False))
        ports.close()

    asyncio.run(alone())
