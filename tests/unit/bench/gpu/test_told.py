"""Is what the parts found said as it is: tests that ran, kills that were survived, others beside ours?"""

import json
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace
from tokenizers import Tokenizer

from bench.gpu import killed, shapes, tested
from bench.gpu.beside import OURS, beside
from bench.gpu.killed import COMPUTES, LIVES, SERVED, SETTLES, Kill, described
from bench.gpu.parts import Outcome
from bench.gpu.report import Check, file_name, part, summary, to_json
from bench.rows import Row, summarise
from tests.unit.bench.test_report import ENVIRONMENT


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("..s\n2 passed, 1 skipped in 3.21s\n", {"passed": 2, "skipped": 1}),
        ("1 failed in tests/x\n===== 1 failed, 41 passed in 3.21s =====\n", {"failed": 1, "passed": 41}),
        ("2 errors in 0.1s", {"errors": 2}),
        ("no tests ran in 0.01s", {}),
        ("", {}),
    ],
)
def test_the_last_line_of_pytest_is_counted(output: str, expected: dict[str, int]) -> None:
    assert tested.counts(output) == expected


WELL = Kill({LIVES: True, SETTLES: True, COMPUTES: True, SERVED: True}, 0.002, "worker peer-0 is gone")
LOST = Kill({LIVES: True, SETTLES: True, COMPUTES: False, SERVED: False}, 0.004, "an illegal memory access")
DEAD = Kill({LIVES: False}, None, "")


def test_the_worst_answer_of_all_kills_is_the_minimum() -> None:
    rows = {row.quantity: row for row in killed.rows([WELL, LOST, DEAD], "sender")}
    assert (rows[LIVES].minimum, rows[LIVES].maximum, rows[LIVES].repetitions) == (0.0, 1.0, 3)
    assert (rows[COMPUTES].minimum, rows[COMPUTES].repetitions) == (0.0, 2)
    assert (rows["settled"].minimum, rows["settled"].maximum) == (2.0, 4.0)
    assert killed.MEMORY not in rows, "it was not asked"


def test_a_kill_is_told_in_one_line() -> None:
    assert described(DEAD) == "survivor lives: NO"
    said = described(LOST)
    assert "its device computes: NO" in said
    assert said.endswith("settled after 4.0 ms; an illegal memory access")


def decode(benchmark: str, rates: list[float], rows: int, context: int = 1024) -> Row:
    return summarise(
        benchmark, OURS, rates, unit="tokens/s", limited_by="x", parameters={"rows": rows, "context": context}
    )


def test_ours_is_compared_only_with_what_has_its_size() -> None:
    ours = [decode("steps", [100.0, 110.0, 120.0], 1), decode("steps", [9.0], 32), decode("steps", [1.0], 1, 8192)]
    theirs = [decode("them", [50.0, 55.0], 1), decode("them", [1.0], 64)]
    (row,) = beside([*ours, *theirs])
    assert row.quantity == "decode, ours / them"
    assert row.parameters == {"rows": 1, "context": 1024}
    assert row.median == pytest.approx(110 / 52.5)
    assert (row.minimum, row.maximum) == (100 / 55, 120 / 50)


OUTCOME = Outcome(
    part="steps",
    question="how far?",
    status="crashed",
    seconds=3.0,
    why="killed by SIGABRT",
    printed="09:00:00.000 INFO    gpu-check      routine\nlast words",
    rows=(
        summarise("steps", "absolute", [2.0], unit="ms", limited_by="x"),
        summarise("steps", "share", [0.9], unit="ratio", limited_by="y"),
    ),
    notes=("64 rows are left out",),
    facts={"gpu": "none"},
)


def test_a_part_is_shown_with_its_ratios_first_and_how_it_ended() -> None:
    shown = part(OUTCOME)
    assert shown.index("share") < shown.index("absolute")
    for piece in ("steps: how far? crashed (3 s)", "gpu: none", "- 64 rows are left out", "  last words"):
        assert piece in shown
    assert "crashed" in summary([OUTCOME])


def test_a_part_that_ended_well_shows_its_warnings_alone() -> None:
    printed = (
        "drawing random weights\n09:00:00.000 INFO    gpu-check      routine\n"
        "09:00:01.000 WARNING gpu-check      no CUDA graph of a step of 8 rows\n"
    )
    shown = part(replace(OUTCOME, status="ok", why="", printed=printed))
    assert "no CUDA graph of a step of 8 rows" in shown
    assert "routine" not in shown
    assert "drawing" not in shown


def test_tests_that_warn_pass_and_what_they_print_is_passed_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """In the strict configuration of the project, under the versions of another machine."""
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    file = tmp_path / "test_warning.py"
    file.write_text("import warnings\n\n\ndef test_it() -> None:\n    warnings.warn('old', stacklevel=1)\n")
    rows: list[Row] = []
    tested.run_tests(lambda *told, **_: rows.extend(told), "kernels", str(file))
    assert rows[0].median == 1.0
    assert rows[0].limited_by == "1 passed"
    assert "test_it PASSED" in capfd.readouterr().out


def test_the_file_can_be_read_again() -> None:
    check = Check(environment=ENVIRONMENT, outcomes=(OUTCOME,))
    assert msgspec.json.decode(to_json(check), type=Check) == check


@pytest.mark.parametrize(
    ("only", "on_gpu", "expected"),
    [
        ((), True, "2026-01-31-abc1234-gpu.json"),
        (("steps", "killed"), True, "2026-01-31-abc1234-gpu-steps-killed.json"),
        ((), False, "2026-01-31-abc1234-gpu-interpret.json"),
    ],
)
def test_only_a_full_run_on_a_gpu_gets_the_plain_name(only: tuple[str, ...], on_gpu: bool, expected: str) -> None:
    assert file_name(ENVIRONMENT, only, on_gpu=on_gpu) == expected


def test_every_token_of_the_model_has_a_text_of_its_own(tmp_path: Path) -> None:
    """Weights are random, so any of them is sampled."""
    directory = shapes.write(shapes.TINY, tmp_path)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    texts = {tokenizer.decode([number]) for number in range(200, shapes.TINY.vocab)}
    assert len(texts) > shapes.TINY.vocab - 260  # bytes of half a character look alike
    config = json.loads((directory / "config.json").read_bytes())
    assert (config["vocab_size"], config["num_key_value_heads"]) == (shapes.TINY.vocab, shapes.TINY.kv_heads)
