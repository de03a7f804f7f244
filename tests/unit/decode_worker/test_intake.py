"""Does a request decode only from pages that are exactly what the prefill worker computed?"""

import asyncio
from collections.abc import Callable

import msgspec
import pytest

from decode_worker.intake import Received, first_difference, take_in
from engine.thread import EngineThread
from runtime.clock import SystemClock
from runtime.params import SamplingParams
from tests.support.kv_pair import LAYOUT, Pair, engine, filled, page_bytes, pair
from transport.kv import Outbound
from transport.loopback import Faults
from transport.messages.worker import Admit

PROMPT = tuple(range(1, 11))  # three pages of four, the last half full
SENT_FROM, RECEIVED_INTO = (9, 2, 3), (5, 6, 0)
TOKEN = 97


def take(
    send: Callable[[Outbound, bytes], None],
    faults: Faults | None = None,
    meanwhile: Callable[[Pair], None] | None = None,
) -> tuple[Received, bool]:
    """One intake while the prefill side does `send(outbound, digests)`; also whether the pages are as computed."""
    source, target = filled(PROMPT, SENT_FROM), engine()

    async def both() -> Received:
        ports = pair(faults)
        thread = EngineThread()
        admit = Admit(
            request_id=1,
            transfer_id=7,
            peer=ports.prefill.peer,
            prompt=PROMPT,
            sampling=SamplingParams(max_tokens=4, seed=0),
            pages=4,
        )
        outbound = ports.prefill.send(7, ports.decode.peer, source.regions(SENT_FROM))
        inbound = ports.decode.expect(7, ports.prefill.peer, target.regions(RECEIVED_INTO))
        send(outbound, source.digest(SENT_FROM))
        if meanwhile is not None:
            meanwhile(ports)
        try:
            async with asyncio.timeout(10):
                return await take_in(
                    admit, inbound, RECEIVED_INTO, target, thread, SystemClock(), started=SystemClock().now()
                )
        finally:
            thread.close()
            ports.close()

    received = asyncio.run(both())
    here = b"".join(page_bytes(target, page) for page in RECEIVED_INTO)
    return received, here == b"".join(page_bytes(source, page) for page in SENT_FROM)


def complete(outbound: Outbound, digests: bytes, note: bytes = msgspec.msgpack.encode(TOKEN)) -> None:
    outbound.push(len(digests) // 8 * LAYOUT.page_bytes)
    outbound.finish(digests, note)


def test_token_1_comes_with_pages_that_are_as_they_were_computed() -> None:
    received, same = take(complete)
    assert same
    assert (received.first_token, received.error, received.quarantine) == (TOKEN, None, False)
    assert received.intake_s > 0
    assert received.verify_s > 0


@pytest.mark.parametrize("page", [0, 1, 2])
def test_a_page_that_differs_from_its_digest_ends_the_intake(page: int) -> None:
    def send(outbound: Outbound, digests: bytes) -> None:
        wrong = bytearray(digests)
        wrong[8 * page] ^= 1
        complete(outbound, bytes(wrong))

    received, _ = take(send)
    assert received.first_token is None
    assert received.error == f"page {page} of 3 of request 1 differs from what was sent"
    assert not received.quarantine


def test_bytes_damaged_on_their_way_are_found() -> None:
    received, same = take(complete, Faults(flip_data=frozenset({0})))
    assert not same
    assert received.first_token is None
    assert received.error is not None
    assert "differs" in received.error


def test_a_missing_digest_is_a_difference() -> None:
    def send(outbound: Outbound, digests: bytes) -> None:
        outbound.push(len(RECEIVED_INTO) * LAYOUT.page_bytes)
        outbound.finish(digests[:-8], msgspec.msgpack.encode(TOKEN))

    received, _ = take(send)
    assert received.first_token is None
    assert received.error == "page 2 of 3 of request 1 differs from what was sent"


@pytest.mark.parametrize("note", [b"", b"\xc0", b"\xa1x", b"\xc1"])
def test_a_note_that_is_no_token_ends_the_intake_and_not_the_worker(note: bytes) -> None:
    received, _ = take(lambda outbound, digests: complete(outbound, digests, note))
    assert received.first_token is None
    assert received.error is not None
    assert "is no token" in received.error


def test_a_hand_off_that_was_given_up_says_why() -> None:
    received, _ = take(lambda outbound, _: outbound.abort("cancelled"))
    assert (received.first_token, received.error, received.quarantine) == (None, "cancelled", False)


def test_a_lost_peer_ends_the_intake() -> None:
    received, _ = take(lambda *_: None, meanwhile=lambda ports: ports.decode.peer_gone("p0", 1))
    assert received.first_token is None
    assert received.error == "worker p0 is gone"
    assert not received.quarantine


def test_pages_that_the_wire_never_lets_go_of_are_quarantined() -> None:
    def lose(ports: Pair) -> None:
        asyncio.get_running_loop().call_later(0.05, ports.decode.peer_gone, "p0", 1)

    stuck = Faults(drop_data=frozenset({0}), clings=True)
    received, _ = take(lambda outbound, digests: outbound.push(len(digests) // 8 * LAYOUT.page_bytes), stuck, lose)
    assert (received.first_token, received.quarantine) == (None, True)


# --- digests ---------------------------------------------------------------------------------------------------------

A, B, C = b"aaaaaaaa", b"bbbbbbbb", b"cccccccc"


@pytest.mark.parametrize(
    ("ours", "theirs", "page"),
    [
        (b"", b"", None),
        (A + B + C, A + B + C, None),
        (A + B + C, B + B + C, 0),
        (A + B + C, A + B + B, 2),
        (A + B, A + B + C, 2),
        (A + B + C, A, 1),
        (A, b"", 0),
        (A, A + b"b", 1),
        (A + b"b", A, 1),
    ],
)
def test_first_difference(ours: bytes, theirs: bytes, page: int | None) -> None:
    assert first_difference(ours, theirs) == page
