"""Does a part of the GPU check that ends badly leave what it had, and the others alone?"""

import os
from pathlib import Path

import pytest

from bench.gpu.parts import PARTS, Part, Rates, Settings, Status, read_records, run_part, verdict

PART = Part(name="crashing", question="does it?", limit_s=60, module="tests.support.gpu_parts")


def settings(device: str) -> Settings:
    return Settings(device=device, rates=None, parent_pid=os.getpid())


@pytest.mark.parametrize(
    ("how", "limit_s", "status", "why"),
    [
        ("return", 60.0, "ok", ""),
        ("abort", 60.0, "crashed", "killed by SIGABRT"),
        ("raise", 60.0, "failed", "an illegal memory access"),
        ("exit", 60.0, "failed", "exit code 3"),
    ],
)
def test_what_was_told_before_the_end_is_kept(
    tmp_path: Path, how: str, limit_s: float, status: Status, why: str
) -> None:
    outcome = run_part(PART, settings(how), tmp_path, limit_s)
    assert outcome.status == status, outcome.why
    assert why in outcome.why + outcome.printed
    assert bool(outcome.why) is (status != "ok")
    assert [row.quantity for row in outcome.rows] == ["measured before"]
    assert outcome.notes == ("still here",)
    assert "last words" in outcome.printed


def test_a_part_that_hangs_is_killed_at_its_limit(tmp_path: Path) -> None:
    outcome = run_part(PART, settings("hang"), tmp_path, limit_s=0.01)
    assert outcome.status == "out of time"
    assert "within 0 s" in outcome.why


def test_half_a_line_is_no_record(tmp_path: Path) -> None:
    """The part was killed while it wrote."""
    file = tmp_path / "records.jsonl"
    file.write_bytes(b'{"note":"whole"}\n{"note":"ha')
    assert [record.note for record in read_records(file)] == ["whole"]
    assert read_records(tmp_path / "nothing.jsonl") == []


def test_how_a_process_ended() -> None:
    assert verdict(0, 5.0) == ("ok", "")
    assert verdict(-9, 5.0) == ("crashed", "killed by SIGKILL")
    assert verdict(2, 5.0) == ("failed", "exit code 2")
    assert verdict(None, 5.0)[0] == "out of time"


def test_every_part_has_a_module_that_runs() -> None:
    root = Path(__file__).parents[4]
    for part in PARTS:
        source = (root / (part.module.replace(".", "/") + ".py")).read_text(encoding="utf-8")
        assert "\ndef run(" in source, part.module
    assert len({part.name for part in PARTS}) == len(PARTS)


def test_the_ceiling_of_the_memory_is_the_better_of_copy_and_read() -> None:
    assert Rates(copy=4e12, read=3e12, matrix=8e14).memory == 4e12
    assert Rates(copy=3e12, read=4e12, matrix=8e14).memory == 4e12
