"""Does the real command look at this machine, say so in both forms, and leave nothing behind?"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import processes_of
from tests.support.tree import ROOT

pytestmark = pytest.mark.e2e

COMMAND = [sys.executable, "-c", "from launch.cli import main; main()", "doctor"]


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory with a short path: it has to hold sockets."""
    with tempfile.TemporaryDirectory(prefix="kvrelay-doctor-", dir="/tmp") as directory:
        yield Path(directory)


def environment(base: Path, **variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("UCX_", "PYTORCH_"))}
    return kept | {"XDG_RUNTIME_DIR": str(base), "KVRELAY_CACHE": str(base / "cache")} | variables


def doctor(base: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*COMMAND, *options],
        cwd=ROOT,
        env=environment(base, **variables),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert not processes_of(str(base))
    assert not list((base / "kvrelay").glob("*"))
    return done


def test_json_and_exit_code_agree_and_the_link_is_measured(base: Path) -> None:
    done = doctor(base, "--json")
    report = json.loads(done.stdout)
    errors = [one for one in report["findings"] if one["level"] == "error"]
    assert (report["schema"], report["works"]) == (1, not errors)
    assert done.returncode == (1 if errors else 0)
    link = report["facts"]["link"]
    assert link["error"] is None, link
    assert link["gigabytes_per_s"] > 0
    assert link["memcpy_gigabytes_per_s"] > link["gigabytes_per_s"]
    assert report["facts"]["model"]["present"] is False
    assert not any("could not be examined" in one["text"] for one in report["findings"])


def test_a_cell_that_cannot_start_is_a_finding_and_exit_code_1(base: Path) -> None:
    done = doctor(base, UCX_TLS="no_such_transport", UCX_NET_DEVICES="lo")
    assert done.returncode == 1
    assert "a cell without a model does not start" in done.stdout
    assert "try without UCX_TLS=no_such_transport" in done.stdout


def test_a_directory_that_cannot_hold_sockets_is_a_finding(base: Path) -> None:
    done = doctor(base, XDG_RUNTIME_DIR=str(base / ("x" * 100)))
    assert done.returncode == 1
    assert "too long for a socket" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_when_it_is_interrupted(base: Path, number: signal.Signals) -> None:
    cell = base / "kvrelay" / "doctor"
    running = subprocess.Popen(
        COMMAND, cwd=ROOT, env=environment(base), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 30
    while not (cell / "coordinator.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    running.send_signal(number)
    _, said = running.communicate(timeout=60)
    assert (running.returncode, "Traceback" in said) == (130, False), said
    assert not processes_of(str(base))
    assert not cell.exists()
