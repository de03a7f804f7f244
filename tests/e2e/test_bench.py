"""Does a benchmark run from end to end, and does it leave nothing behind?"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from bench.report import Result
from tests.support.processes import processes_of
from tests.support.tree import ROOT

pytestmark = pytest.mark.e2e


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Short, because sockets live in it: pytest's own is too long when several workers run."""
    with tempfile.TemporaryDirectory(prefix="kvb-") as directory:
        yield Path(directory)


def bench(tmp_path: Path, name: str) -> list[Result]:
    """What a quick run of one benchmark writes."""
    out = tmp_path / "results.json"
    running = subprocess.Popen(
        [sys.executable, "-m", "bench", "--quick", "--only", name, "--out", str(out)],
        cwd=ROOT,
        env=os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    printed, _ = running.communicate()
    assert running.returncode == 0, printed
    assert not processes_of(f" {running.pid} ")  # its own children are told its id
    assert not processes_of(str(tmp_path))  # those of a cell are told their directory
    results = msgspec.json.decode(out.read_bytes(), type=list[Result])
    assert all(result.row.quantity in printed for result in results)
    assert all(f"--only {name}" in result.environment.command for result in results)
    return results


def test_transfer_is_measured_beside_memcpy_and_ucx_perftest(tmp_path: Path) -> None:
    rows = [result.row for result in bench(tmp_path, "transfer")]
    quantities = {row.quantity for row in rows}
    assert {"memcpy", "contiguous", "paged", "ucx_perftest as ours", "contiguous / memcpy"} <= quantities
    assert all(0 < row.minimum <= row.median <= row.maximum for row in rows)
    assert {row.parameters["transport"] for row in rows if row.quantity == "paged"} == {"tcp"}


def test_the_coordinator_is_measured_on_cells_that_are_gone_afterwards(tmp_path: Path) -> None:
    rows = [result.row for result in bench(tmp_path, "coordinator")]
    assert {row.parameters["load"] for row in rows} == {"paced", "flooded", "short"}
    assert all(row.minimum > 0 for row in rows)
    assert not list((tmp_path / "kvrelay").iterdir())


def test_the_http_front_is_measured_beside_zeromq_and_its_reader_is_gone_afterwards(tmp_path: Path) -> None:
    rows = [result.row for result in bench(tmp_path, "http")]
    assert {row.parameters["load"] for row in rows} == {"paced", "flooded", "short"}
    assert all(row.minimum > 0 for row in rows if "less" not in row.quantity)
    assert sum(row.quantity == "the same through ZeroMQ" for row in rows) == 3
    assert not processes_of("bench.http_load")
