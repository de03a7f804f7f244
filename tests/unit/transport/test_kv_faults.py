"""What does the hand-off do when peers die and when messages are not meant for it?

Over the loopback wire, on a clock that the test moves.
"""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.handoff import OFFER_TIMEOUT_S, TIMEOUT_S, turns
from tests.support.kv_stage import FAR, LANDING, PIECES, TOTAL, Stage, now, staged
from transport.codec import Codec
from transport.kv import Inbound, Outbound
from transport.kv_early import MAX_TRANSFERS, EarlyMessages
from transport.kv_messages import Header, KvMessage, Landing, Offer, Refused, Trailer
from transport.kv_settling import GRACE_S
from transport.loopback import Faults

# --- death -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [0, 7, PIECES - 1])
@pytest.mark.parametrize("victim", ["prefill", "decode"])
def test_peer_gone_in_mid_transfer_frees_the_pages_of_the_survivor(piece: int, victim: str) -> None:
    async def play(stage: Stage) -> None:
        outbound, inbound = await stage.both()
        outbound.finish(b"", b"")
        await turns()
        survivor, peer, transfer = (
            (stage.decode, stage.prefill.peer, inbound)
            if victim == "prefill"
            else (stage.prefill, stage.decode.peer, outbound)
        )
        assert not await now(transfer)
        survivor.peer_gone(peer.worker_id, peer.epoch)
        await turns()
        outcome = await transfer.settled()
        assert (outcome.ok, outcome.quarantine) == (False, False)
        assert outcome.error == f"worker {victim} is gone"
        assert survivor.transfers == 0

    kill = Faults(kill_sender_at=piece) if victim == "prefill" else Faults(kill_receiver_at=piece)
    staged(play, kill)


def test_peer_gone_quarantines_what_the_wire_never_lets_go_of() -> None:
    async def play(stage: Stage) -> None:
        outbound, inbound = await stage.both()
        stage.hub.hold()
        outbound.push(30_000)
        stage.prefill.peer_gone("decode", 1)
        stage.decode.peer_gone("prefill", 1)
        await stage.clock.advance(GRACE_S / 2)
        assert not await now(outbound)
        assert not await now(inbound)
        await stage.clock.advance(GRACE_S / 2)
        assert (await outbound.settled()).quarantine
        assert (await inbound.settled()).quarantine

    staged(play, Faults(clings=True))


def test_peer_gone_before_anything_was_agreed_ends_at_once_even_if_the_wire_clings() -> None:
    async def play(stage: Stage) -> None:
        inbound, outbound = stage.expect(1), stage.send(2)
        stage.prefill.peer_gone("decode", 1)
        stage.decode.peer_gone("prefill", 1)
        assert not (await outbound.settled()).quarantine
        assert not (await inbound.settled()).quarantine
        assert stage.forgotten

    staged(play, Faults(clings=True))


def test_peer_gone_after_the_end_changes_nothing() -> None:
    async def play(stage: Stage) -> None:
        outbound, inbound = await stage.both()
        outbound.finish(b"", b"")
        await turns()
        stage.prefill.peer_gone("decode", 1)
        stage.decode.peer_gone("prefill", 1)
        stage.decode.peer_gone("nobody", 1)
        assert (await outbound.settled()).ok
        assert (await inbound.settled()).ok

    staged(play)


def test_peer_gone_makes_all_later_words_of_it_stale() -> None:
    async def play(stage: Stage) -> None:
        stage.decode.peer_gone("prefill", 1)
        stage.send()
        await turns()
        assert stage.decode.stale_messages == 1
        outcome = await stage.expect().settled()
        assert (outcome.error, outcome.quarantine) == ("worker prefill cannot be reached", False)

    staged(play)


# --- words that are not meant ----------------------------------------------------------------------------------------

OURS = Header("prefill", 1, 1, "f")


@pytest.mark.parametrize(
    "header",
    [
        Header("prefill", 1, 2, "f"),  # to another incarnation of the receiver
        Header("prefill", 2, 1, "f"),  # of another incarnation of the sender
        Header("another", 1, 1, "f"),
        Header("prefill", 1, 1, "g"),  # about another layout
    ],
)
@pytest.mark.parametrize("early", [True, False])
def test_stale_words_are_dropped_and_counted(header: Header, early: bool) -> None:
    async def play(stage: Stage) -> None:
        wire = stage.hub.join()
        link = wire.connect(stage.decode.peer.address)

        def say(message: KvMessage) -> None:
            link.send_control(Codec[KvMessage](KvMessage).encode(message))

        inbound = None if early else stage.expect()
        await turns()
        say(Offer(header=header, transfer_id=1, runs=tuple(LANDING), piece_bytes=8192))
        say(Trailer(header=header, transfer_id=1, error="a lie"))
        await turns()
        inbound = inbound or stage.expect()
        assert stage.decode.stale_messages == 2
        outbound = stage.send()
        outbound.finish(b"", b"")
        assert (await inbound.settled()).ok
        assert stage.target.bytes() == stage.source.bytes()

    staged(play)


@pytest.mark.parametrize("message", [b"", b"\xc1", b"\x81\xa4type\xa5Offer", bytes(1000)])
def test_stale_bytes_that_are_no_message_are_dropped_and_counted(message: bytes) -> None:
    async def play(stage: Stage) -> None:
        stage.hub.join().connect(stage.decode.peer.address).send_control(message)
        await turns()
        assert stage.decode.stale_messages == 1

    staged(play)


def test_early_words_are_bounded_in_number_and_time() -> None:
    held = EarlyMessages(hold_s=5.0)
    for transfer_id in range(MAX_TRANSFERS + 5):
        held.hold(Offer(header=OURS, transfer_id=transfer_id, runs=(1,), piece_bytes=1), now=0.0)
    assert len(held) == MAX_TRANSFERS
    for _ in range(9):
        held.hold(Refused(header=OURS, transfer_id=0, reason=""), now=1.0)
    assert len(held.take(0, now=4.9)) == 4
    assert held.take(0, now=4.9) == []
    assert held.take(MAX_TRANSFERS, now=4.9) == []
    assert held.take(1, now=5.0) == []
    assert len(held) == 0
    held.hold(Trailer(header=OURS, transfer_id=1, error="late"), now=6.0)
    assert len(held) == 0
    held.hold(Landing(header=OURS, transfer_id=1, runs=(1,), piece_bytes=1), now=6.0)
    assert len(held.take(1, now=7.0)) == 1


# --- wrong use -------------------------------------------------------------------------------------------------------


def test_wrong_use_is_an_error() -> None:
    async def play(stage: Stage) -> None:
        outbound, _ = await stage.both()
        with pytest.raises(ValueError, match="already being sent"):
            stage.send()
        with pytest.raises(ValueError, match="already expected"):
            stage.expect()
        with pytest.raises(ValueError, match="0 runs"):
            stage.decode.expect(2, stage.prefill.peer, ())
        outbound.push(10)
        for ready in (9, TOTAL + 1):
            with pytest.raises(ValueError, match="bytes ready"):
                outbound.push(ready)
        with pytest.raises(ValueError, match="a note of 65537"):
            outbound.finish(b"", bytes((1 << 16) + 1))
        with pytest.raises(ValueError, match="for 0 runs"):
            stage.prefill.send(3, stage.decode.peer, ()).finish(b"", b"")

    staged(play)


def test_a_reason_of_any_length_can_be_said() -> None:
    async def play(stage: Stage) -> None:
        outbound, inbound = await stage.both()
        outbound.abort("x" * 5000)
        assert (await inbound.settled()).error == "x" * 2000
        other = stage.send(2)
        stage.decode.refuse(2, stage.prefill.peer, "y" * 5000)
        assert (await other.settled()).error == "y" * 2000

    staged(play)


# --- everything at once ----------------------------------------------------------------------------------------------

PREFILL_STEPS = st.lists(st.sampled_from(["push", "wait", "long wait", "very long wait"]), max_size=6)
DECODE_STEPS = st.lists(st.sampled_from(["wait", "long wait", "very long wait"]), max_size=4)


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    before_send=PREFILL_STEPS,
    after_send=PREFILL_STEPS,
    last=st.sampled_from(["finish", "abort", "decline"]),
    before_expect=DECODE_STEPS,
    answer=st.sampled_from(["expect", "expect", "refuse"]),
    merge=st.randoms(use_true_random=False),
    delays=st.tuples(st.integers(0, 12), st.integers(0, 12)),
)
def test_every_message_finds_a_receive_whatever_happens(  # noqa: PLR0917 - hypothesis fills them in
    before_send: list[str],
    after_send: list[str],
    last: str,
    before_expect: list[str],
    answer: str,
    merge: object,
    delays: tuple[int, int],
) -> None:
    async def play(stage: Stage) -> None:
        started: dict[str, Outbound | Inbound] = {}
        ready = 0

        async def step(name: str) -> None:
            nonlocal ready
            outbound = started.get("send")
            match name:
                case "wait":
                    await turns(5)
                case "long wait":
                    await stage.clock.advance(TIMEOUT_S * 0.9)
                case "very long wait":
                    await stage.clock.advance(OFFER_TIMEOUT_S * 0.9)
                case "send":
                    regions = () if last == "decline" else stage.source.regions
                    started["send"] = stage.prefill.send(1, stage.decode.peer, regions)
                case "expect":
                    started["expect"] = stage.expect()
                case "refuse":
                    stage.decode.refuse(1, stage.prefill.peer, "no room")
                case "push" if isinstance(outbound, Outbound) and last != "decline":
                    ready = min(TOTAL, ready + 20_000)
                    outbound.push(ready)
                case "finish" if isinstance(outbound, Outbound):
                    outbound.finish(b"d", b"n")
                case "abort" | "decline" if isinstance(outbound, Outbound):
                    outbound.abort("cancelled")

        scripts = [[*before_send, "send", *after_send, last], [*before_expect, answer]]
        while any(scripts):
            script = merge.choice([script for script in scripts if script])  # type: ignore[attr-defined]  # a Random
            await step(script.pop(0))
        await stage.clock.advance(FAR)
        sent = await started["send"].settled()
        assert not sent.quarantine
        if "expect" in started:
            received = await started["expect"].settled()
            assert received.ok <= sent.ok  # decode may give up while prefill finishes, never the other way round
            if received.ok:
                assert stage.target.bytes() == stage.source.bytes()
        assert stage.target.gaps_untouched()
        assert stage.unmatched == 0
        assert stage.forgotten

    control_turns, data_turns = delays
    staged(play, Faults(control_turns=control_turns, data_turns=data_turns), collect=False)
