import msgspec
import pytest

from bench.machine import Environment
from bench.report import Result, describe, file_name, table, to_json
from bench.rows import Row, summarise

ENVIRONMENT = Environment(
    date="2026-01-31",
    command="python -m bench",
    commit="abc1234",
    dirty=False,
    cpu="a CPU",
    cores=2,
    load_average=0.25,
    python="3.12.1",
    torch="2.13.0",
    transformers="5.23.0",
    ucx="1.20.1",
    ucxx=None,
)


def row(quantity: str, values: list[float], note: str, **parameters: str | int) -> Row:
    return summarise("transfer", quantity, values, unit="GB/s", limited_by=note, parameters=parameters)


def test_a_row_is_the_median_and_the_spread_in_its_unit() -> None:
    made = summarise("b", "q", [0.004, 0.001, 0.002, 0.009], unit="ms", scale=1e3, limited_by="x")
    assert (made.median, made.minimum, made.maximum, made.repetitions) == (3.0, 1.0, 9.0, 4)


def test_what_was_never_measured_is_no_row() -> None:
    with pytest.raises(ValueError, match="q was never measured"):
        summarise("b", "q", [], unit="s", limited_by="x")


def test_a_result_in_the_file_can_be_read_alone() -> None:
    rows = [row("memcpy", [10.0], "caches", MiB=16), row("paged", [4.0, 5.0], "Python", MiB=16, transport="sysv")]
    written = to_json(rows, ENVIRONMENT)
    assert written.endswith(b"]\n")
    read = msgspec.json.decode(written, type=list[Result])
    assert [result.row for result in read] == rows
    assert {result.environment for result in read} == {ENVIRONMENT}


@pytest.mark.parametrize(
    ("changes", "only", "quick", "expected"),
    [
        ({}, None, False, "2026-01-31-abc1234.json"),
        ({"dirty": True}, None, True, "2026-01-31-abc1234-dirty-quick.json"),
        ({"commit": None, "dirty": None}, "handoff", False, "2026-01-31-unversioned-handoff.json"),
    ],
)
def test_only_a_full_run_of_a_clean_commit_gets_the_plain_name(
    changes: dict[str, object], only: str | None, quick: bool, expected: str
) -> None:
    assert file_name(msgspec.structs.replace(ENVIRONMENT, **changes), only, quick=quick) == expected


def test_a_table_has_aligned_columns_and_numbers_each_note_once() -> None:
    rows = [
        row("memcpy", [12345.6], "caches", MiB=1),
        row("contiguous", [0.12345, 1.0], "Python", MiB=64, transport="sysv"),
        row("paged", [0.5], "Python"),
    ]
    header, rule, *lines = table(rows).splitlines()
    assert header.split() == ["quantity", "with", "median", "min", "max", "unit", "n", "note"]
    assert set(rule) == {"-"}
    assert lines[0].split("  ")[0] == "memcpy"
    assert "12,346" in lines[0]
    assert "MiB 64, transport sysv" in lines[1]
    assert [line[-3:] for line in lines[:3]] == ["[1]", "[2]", "[2]"]
    assert len({len(line) for line in lines[:3]}) == 1
    assert lines[3:] == ["[1] caches", "[2] Python"]
    assert lines[1].split()[5:8] == ["0.5617", "0.1235", "1"]


def test_the_heading_says_what_the_numbers_hold_for() -> None:
    heading = describe(msgspec.structs.replace(ENVIRONMENT, dirty=True))
    for part in (
        "a CPU",
        "2 cores",
        "load average 0.25",
        "torch 2.13.0",
        "abc1234 with local changes",
        "python -m bench",
    ):
        assert part in heading
