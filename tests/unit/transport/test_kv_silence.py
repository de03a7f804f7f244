"""What does the hand-off do when a peer falls silent, or when messages are lost, late, doubled or damaged?

Over the loopback wire, on a clock that the test moves.
"""

import pytest

from tests.support.handoff import OFFER_TIMEOUT_S, TIMEOUT_S, turns
from tests.support.kv_stage import FAR, PIECES, TOTAL, Stage, now, staged
from transport.codec import Codec
from transport.kv_messages import Header, KvMessage, Landing, Offer, Refused, Trailer
from transport.loopback import Faults

# --- silence ---------------------------------------------------------------------------------------------------------


def test_a_sender_that_nobody_answers_gives_up_with_its_pages_free() -> None:
    async def play(stage: Stage) -> None:
        outbound = stage.send()
        outbound.finish(b"", b"")
        await stage.clock.advance(TIMEOUT_S - 1)
        assert not await now(outbound)
        await stage.clock.advance(1)
        outcome = await outbound.settled()
        assert (outcome.ok, outcome.quarantine, outcome.nbytes) == (False, False, 0)
        assert "10 s" in (outcome.error or "")
        received = await stage.expect().settled()  # too late; it learns that at once
        assert (received.ok, received.quarantine) == (False, False)
        await turns()
        assert stage.forgotten
        assert stage.unmatched == 0

    staged(play)


def test_a_landing_that_comes_after_the_sender_gave_up_is_still_answered() -> None:
    async def play(stage: Stage) -> None:
        stage.hub.hold()
        outbound, inbound = stage.send(), stage.expect()
        await stage.clock.advance(TIMEOUT_S)
        assert not (await outbound.settled()).quarantine
        stage.source.fill(0)
        stage.hub.release()
        outcome = await inbound.settled()
        assert (outcome.ok, outcome.quarantine) == (False, False)
        await turns()
        assert stage.unmatched == 0
        assert stage.forgotten

    staged(play)


@pytest.mark.parametrize("late_s", [0.0, TIMEOUT_S - 1, TIMEOUT_S + 1, 2 * TIMEOUT_S, 3 * TIMEOUT_S])
def test_a_receiver_that_is_never_offered_anything_gives_up_with_its_pages_free(late_s: float) -> None:
    async def play(stage: Stage) -> None:
        inbound = stage.expect()
        await stage.clock.advance(OFFER_TIMEOUT_S - 1)
        assert not await now(inbound)
        await stage.clock.advance(1)
        outcome = await inbound.settled()
        assert (outcome.ok, outcome.quarantine) == (False, False)
        await stage.clock.advance(late_s)
        outbound = stage.send()
        outbound.finish(b"", b"")
        await stage.clock.advance(TIMEOUT_S)
        late = await outbound.settled()
        assert (late.ok, late.quarantine, late.nbytes) == (False, False, 0)
        await stage.clock.advance(TIMEOUT_S)
        assert stage.forgotten
        assert stage.unmatched == 0

    staged(play)


def test_pages_that_meet_a_receiver_that_gave_up_are_drained() -> None:
    """Offer and pages cross the words of a receiver whose patience just ended."""

    async def play(stage: Stage) -> None:
        inbound = stage.expect()
        await turns()
        stage.hub.hold()
        await stage.clock.advance(OFFER_TIMEOUT_S - 1)
        outbound = stage.send()
        outbound.finish(b"", b"")
        await stage.clock.advance(1)
        assert not (await inbound.settled()).quarantine
        stage.target.fill(0x5A)
        stage.hub.release()
        outcome = await outbound.settled()
        assert not outcome.quarantine
        await turns()
        assert stage.target.bytes() == b"\x5a" * TOTAL
        assert stage.unmatched == 0
        assert stage.forgotten

    staged(play)


def test_a_sender_that_falls_silent_costs_the_receiver_its_pages_but_leaves_nothing_pending() -> None:
    async def play(stage: Stage) -> None:
        outbound, inbound = await stage.both()
        outbound.push(30_000)
        await stage.clock.advance(TIMEOUT_S - 1)
        outbound.push(40_000)
        await stage.clock.advance(TIMEOUT_S - 1)
        assert not await now(inbound)
        await stage.clock.advance(1)
        outcome = await inbound.settled()
        assert (outcome.ok, outcome.quarantine) == (False, True)
        sent = await outbound.settled()  # the receiver told it to stop
        assert (sent.ok, sent.quarantine) == (False, False)
        assert stage.unmatched == 0
        assert stage.forgotten

    staged(play)


def test_a_slow_owner_is_not_a_silent_peer() -> None:
    """Between two chunks prefill waits for itself. Decode sees a silence, and gives up first."""

    async def play(stage: Stage) -> None:
        outbound, inbound = await stage.both()
        outbound.push(30_000)
        await turns()
        stage.hub.kill(stage.hub.wires[1])  # its words would end the wait
        await stage.clock.advance(5 * TIMEOUT_S)
        assert not await now(outbound)
        outbound.abort("enough")
        assert (await outbound.settled()).error == "enough"
        assert not (await inbound.settled()).ok

    staged(play)


def test_a_lost_page_message_quarantines_the_receiver() -> None:
    async def play(stage: Stage) -> None:
        outbound, inbound = await stage.both()
        outbound.finish(b"", b"")
        assert (await outbound.settled()).ok
        await stage.clock.advance(TIMEOUT_S)
        outcome = await inbound.settled()
        assert (outcome.ok, outcome.quarantine, outcome.nbytes) == (False, True, 0)

    staged(play, Faults(drop_data=frozenset({3})))


def test_a_message_that_the_wire_keeps_quarantines_both() -> None:
    async def play(stage: Stage) -> None:
        outbound, inbound = await stage.both()
        stage.hub.hold()
        outbound.finish(b"", b"")
        await stage.clock.advance(TIMEOUT_S)
        assert (await outbound.settled()).quarantine
        assert (await inbound.settled()).quarantine
        stage.hub.release()
        await turns()
        assert stage.unmatched == 0

    staged(play)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_every_control_message_may_get_lost(lost: int) -> None:
    """The Offer, the Landing, the Trailer. Both sides settle, with the pages at worst in quarantine."""

    async def play(stage: Stage) -> None:
        outbound, inbound = await stage.both()
        outbound.finish(b"", b"")
        await stage.clock.advance(FAR)
        sent, received = await outbound.settled(), await inbound.settled()
        assert not received.ok
        assert (sent.ok, sent.quarantine) == {0: (False, True), 1: (False, False), 2: (True, False)}[lost]
        assert received.quarantine == (lost == 1)
        assert stage.forgotten

    staged(play, Faults(drop_control=frozenset({lost})))


# --- doubles, delays, damage -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("control_turns", "data_turns"), [(0, 0), (5, 0), (0, 5)])
def test_doubled_and_delayed_words_change_nothing(control_turns: int, data_turns: int) -> None:
    async def play(stage: Stage) -> None:
        outbound, inbound = await stage.both()
        outbound.push(30_000)
        await turns()
        outbound.finish(b"d", b"n")
        assert (await outbound.settled()).pieces == PIECES
        outcome = await inbound.settled()
        assert (outcome.ok, outcome.digests, outcome.note) == (True, b"d", b"n")
        assert stage.target.bytes() == stage.source.bytes()
        await turns()
        assert stage.prefill.stale_messages == stage.decode.stale_messages == 0
        assert stage.unmatched == 0

    doubled = frozenset(range(20))
    staged(play, Faults(duplicate_control=doubled, control_turns=control_turns, data_turns=data_turns))


def test_what_is_said_again_in_other_words_does_not_count() -> None:
    async def play(stage: Stage) -> None:
        outbound, inbound = await stage.both()
        prefill, decode = stage.hub.wires
        encode = Codec[KvMessage](KvMessage).encode
        outbound.push(30_000)
        await turns()
        to_prefill, to_decode = Header("decode", 1, 1, "f"), Header("prefill", 1, 1, "f")
        prefill.take_control(encode(Landing(header=to_prefill, transfer_id=1, runs=(TOTAL,), piece_bytes=10)))
        decode.take_control(encode(Offer(header=to_decode, transfer_id=1, runs=(TOTAL,), piece_bytes=10)))
        stage.hub.hold()
        outbound.finish(b"", b"")
        await turns()
        decode.take_control(encode(Trailer(header=to_decode, transfer_id=1, digests=b"first")))
        decode.take_control(encode(Trailer(header=to_decode, transfer_id=1, error="second")))
        prefill.take_control(encode(Refused(header=to_prefill, transfer_id=1, reason="too late")))
        stage.hub.release()
        assert (await outbound.settled()).ok
        outcome = await inbound.settled()
        assert (outcome.ok, outcome.digests) == (True, b"first")
        assert stage.target.bytes() == stage.source.bytes()

    staged(play)


@pytest.mark.parametrize("piece", [0, 7, PIECES - 1])
def test_a_piece_that_fails_ends_the_transfer_on_both_sides(piece: int) -> None:
    async def play(stage: Stage) -> None:
        outbound, inbound = await stage.both()
        outbound.push(32_100)  # 7 pieces
        await turns()
        outbound.finish(b"", b"")
        sent, received = await outbound.settled(), await inbound.settled()
        assert (sent.ok, sent.quarantine) == (False, False)
        assert sent.pieces == (7 if piece < 7 else PIECES)
        assert (received.ok, received.quarantine) == (False, False)
        assert f"message {piece} failed" in (received.error or "")
        assert stage.unmatched == 0

    staged(play, Faults(fail_data=frozenset({piece})))


def test_a_flipped_byte_arrives_and_is_for_the_digests_to_find() -> None:
    async def play(stage: Stage) -> None:
        outbound, inbound = await stage.both()
        outbound.finish(b"", b"")
        assert (await inbound.settled()).ok
        wrong = [i for i, (a, b) in enumerate(zip(stage.source.bytes(), stage.target.bytes(), strict=True)) if a != b]
        assert wrong == [8192]

    staged(play, Faults(flip_data=frozenset({2})))
