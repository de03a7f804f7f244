"""Does the table of a request show what there was of it?"""

import pytest

from launch.client import Completion
from launch.stats import stage_rows
from runtime.stages import DecodeStages, Ledger, PrefillStages

HAND_OFF = ["hand-off gap", "transfer tail", "verify", "(transfer)"]


def rows(prefill_worker: str, transfer_bytes: int) -> dict[str, tuple[str, str]]:
    """The time of each stage, and who measured it."""
    handed_off = transfer_bytes > 0
    ledger = Ledger(
        queue_s=0.0625,
        total_s=1.5,
        prefill=PrefillStages(
            queue_s=0.125,
            compute_s=0.25,
            chunks=3,
            transfer_bytes=transfer_bytes,
            transfer_s=0.0625,
            transfer_tail_s=0.03125 if handed_off else 0.0,
        ),
        decode=DecodeStages(
            intake_s=0.5 if handed_off else 0.0,
            verify_s=0.125 if handed_off else 0.0,
            decode_s=0.5,
            first_step_s=0.25,
            steps=2,
        ),
        prefill_worker=prefill_worker,
        decode_worker="decode-0",
    )
    told = stage_rows(Completion(token_ids=[1, 2, 3], gaps_s=[1.0, 0.5, 0.125], ledger=ledger))
    return {stage: (time, who) for stage, time, who, _ in told}


def test_a_request_that_was_handed_off_shows_what_that_cost() -> None:
    found = rows("prefill-0", transfer_bytes=4096)
    assert list(found)[:4] == ["TTFT", "TPOT", "hand-off gap", "E2E"]
    assert found.keys() >= set(HAND_OFF)
    assert (found["prefill wait"], found["decode"]) == (("250.0 ms", "prefill-0"), ("250.0 ms", "decode-0"))


def test_a_request_that_stayed_shows_nothing_of_a_hand_off() -> None:
    found = rows("decode-0", transfer_bytes=0)
    names = ["TTFT", "TPOT", "E2E", "queue", "prefill queue", "prefill wait", "first decode step", "decode", "residual"]
    assert list(found) == names
    assert {found[name][1] for name in names[4:8]} == {"decode-0"}


@pytest.mark.parametrize("worker", ["prefill-0", "decode-0"])
def test_parts_and_residual_make_up_the_whole(worker: str) -> None:
    found = rows(worker, 4096 if worker == "prefill-0" else 0)
    parts = list(found)[list(found).index("E2E") + 1 : list(found).index("residual") + 1]
    assert sum(float(found[part][0].removesuffix(" ms")) for part in parts) == pytest.approx(1625.0, abs=0.5)
