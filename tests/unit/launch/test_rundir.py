"""Does a cell's directory have one owner, who may be dead, and no way out of its base?"""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from launch import rundir
from launch.rundir import CellInUse, RunDir, base_dir, is_running

ROOT = Path(__file__).parents[3]
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can make what belongs to others")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "b"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- one owner -------------------------------------------------------------------------------------------------------


def test_a_directory_is_private_and_goes_with_its_owner(base: Path) -> None:
    held = RunDir(base, "one")
    assert held.path == base / "one"
    assert (mode(base), mode(held.path)) == (0o700, 0o700)
    assert is_running(base, "one")
    held.remove()
    assert not held.path.exists()
    assert not is_running(base, "one")


def test_a_directory_that_was_open_to_others_is_closed(base: Path) -> None:
    (base / "one").mkdir(parents=True)
    base.chmod(0o777)
    (base / "one").chmod(0o755)
    held = RunDir(base, "one")
    assert (mode(base), mode(held.path)) == (0o700, 0o700)
    held.remove()


def test_a_second_launcher_of_the_same_name_is_told_so_and_disturbs_nothing(base: Path) -> None:
    held = RunDir(base, "one")
    (held.path / "client.sock").touch()
    with pytest.raises(CellInUse, match="'one' is running"):
        RunDir(base, "one")
    assert (held.path / "client.sock").exists()
    assert is_running(base, "one")
    held.remove()
    RunDir(base, "one").remove()


def test_cells_of_different_names_live_side_by_side(base: Path) -> None:
    one, two = RunDir(base, "one"), RunDir(base, "two")
    one.remove()
    assert is_running(base, "two")
    assert two.path.exists()
    two.remove()


def test_what_a_killed_launcher_left_behind_is_cleared(base: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from launch.rundir import RunDir\n"
        "held = RunDir(Path(sys.argv[1]), 'one'); (held.path / 'client.sock').touch()\n"
        "(held.path / 'logs').mkdir(); (held.path / 'logs' / 'old').touch(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(base)], cwd=ROOT, check=False)
    assert killed.returncode == -9
    assert (base / "one" / "logs" / "old").exists()
    assert not is_running(base, "one"), "the lock died with its holder"
    held = RunDir(base, "one")
    assert [leftover.name for leftover in held.path.iterdir()] == ["lock"]
    assert is_running(base, "one")
    held.remove()


def test_children_do_not_keep_the_lock(base: Path) -> None:
    held = RunDir(base, "one")
    script = "import sys; print('here', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"here\n"
        os.close(held._lock)  # the launcher is killed
        running = is_running(base, "one")
        child.communicate()
    assert not running


def test_nothing_runs_where_nothing_is(base: Path) -> None:
    assert not is_running(base, "one")
    (base / "one").mkdir(parents=True)
    assert not is_running(base, "one")


# --- names and places ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "a b", "a\n", "a.b", "$HOME", "~"])
def test_a_name_that_could_lead_elsewhere_is_refused(base: Path, name: str) -> None:
    with pytest.raises(ValueError, match="use letters"):
        RunDir(base, name)
    assert not base.exists()


@pytest.mark.parametrize("name", ["a" * 120, "é" * 40, "漢" * 40])
def test_a_path_too_long_for_a_socket_is_refused_whatever_its_letters(name: str) -> None:
    with pytest.raises(ValueError, match="too long for a socket"):
        RunDir(Path("/run/user/1000/kvrelay"), name)


def test_a_directory_of_somebody_else_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (base / "one").mkdir(parents=True)
    (base / "one" / "theirs").touch()
    monkeypatch.setattr("os.getuid", lambda: os.geteuid() + 1)
    with pytest.raises(PermissionError, match="another user"):
        RunDir(base, "one")
    assert (base / "one" / "theirs").exists()


@as_root
def test_somebody_elses_link_to_a_directory_of_ours_is_refused(base: Path, tmp_path: Path) -> None:
    """In a shared directory for temporary files, anybody can put a link where ours would be."""
    precious = tmp_path / "home" / "one"
    precious.mkdir(parents=True)
    (precious / "thesis").touch()
    base.symlink_to(tmp_path / "home")
    os.lchown(base, 12345, 12345)
    with pytest.raises(PermissionError, match="another user"):
        RunDir(base, "one")
    assert (precious / "thesis").exists()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"XDG_RUNTIME_DIR": "/run/user/7", "TMPDIR": "/var/tmp"}, "/run/user/7/kvrelay"),
        ({"TMPDIR": "/var/tmp"}, f"/var/tmp/kvrelay-{os.getuid()}"),
        ({"XDG_RUNTIME_DIR": "", "TMPDIR": ""}, f"/tmp/kvrelay-{os.getuid()}"),
    ],
)
def test_the_base_is_the_users_own(environment: dict[str, str], expected: str) -> None:
    assert base_dir(environment) == Path(expected)


def test_the_sockets_of_a_cell_differ() -> None:
    cell = Path("/run/x")
    endpoints = {rundir.client_endpoint(cell), rundir.worker_endpoint(cell), rundir.launcher_endpoint(cell)}
    assert endpoints == {f"ipc:///run/x/{who}.sock" for who in ("client", "worker", "launcher")}
