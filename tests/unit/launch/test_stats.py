"""Does the table of a request show what there was of it?"""

from launch.client import Completion
from launch.stats import stage_rows
from runtime.stages import DecodeStages, Ledger, PrefillStages

HAND_OFF = ["hand-off gap", "transfer", "transfer tail", "intake", "verify"]


def rows(prefill_worker: str, transfer_bytes: int) -> dict[str, str]:
    """Who measured each stage."""
    ledger = Ledger(
        prefill=PrefillStages(queue_s=0.1, compute_s=0.2, chunks=3, transfer_bytes=transfer_bytes),
        decode=DecodeStages(steps=4),
        prefill_worker=prefill_worker,
        decode_worker="decode-0",
    )
    return {stage: who for stage, _, who, _ in stage_rows(Completion(gaps_s=[0.5, 0.1], ledger=ledger))}


def test_a_request_that_was_handed_off_shows_what_that_cost() -> None:
    found = rows("prefill-0", transfer_bytes=4096)
    assert list(found)[:4] == ["TTFT", "TPOT", "hand-off gap", "E2E"]
    assert found.keys() >= set(HAND_OFF)
    assert (found["prefill"], found["decode"]) == ("prefill-0", "decode-0")


def test_a_request_that_stayed_shows_nothing_of_a_hand_off() -> None:
    found = rows("decode-0", transfer_bytes=0)
    assert list(found) == ["TTFT", "TPOT", "E2E", "queue", "prefill queue", "prefill", "join", "decode"]
    assert {found["prefill queue"], found["prefill"], found["join"], found["decode"]} == {"decode-0"}
