"""Does the real command look at this machine, say so in both forms, and leave nothing behind?"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import processes_of
from tests.support.tree import ROOT

pytestmark = pytest.mark.e2e

COMMAND = [sys.executable, "-c", "from launch.cli import main; main()", "doctor"]


def doctor(tmp_path: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("UCX_", "PYTORCH_"))}
    done = subprocess.run(
        [*COMMAND, *options],
        cwd=ROOT,
        env=kept | {"XDG_RUNTIME_DIR": str(tmp_path), "KVRELAY_CACHE": str(tmp_path / "cache")} | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert not processes_of(str(tmp_path))
    assert not list((tmp_path / "kvrelay").glob("*"))
    return done


def test_json_and_exit_code_agree_and_the_link_is_measured(tmp_path: Path) -> None:
    done = doctor(tmp_path, "--json")
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


def test_a_cell_that_cannot_start_is_a_finding_and_exit_code_1(tmp_path: Path) -> None:
    done = doctor(tmp_path, UCX_TLS="no_such_transport", UCX_NET_DEVICES="lo")
    assert done.returncode == 1
    assert "a cell without a model does not start" in done.stdout
    assert "try without UCX_TLS=no_such_transport" in done.stdout
