"""Where do the sockets and configuration files of a running cell lie?

In a private directory per cell name, below a private directory per user. A lock file says whether its launcher lives;
what a killed launcher left behind is cleared by the coordinator or, at the latest, by the next launcher of that name.
"""

import fcntl
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path

_MAX_SOCKET_PATH_BYTES = 100  # sun_path holds 108 bytes, and zmq wants a few


class CellInUse(Exception):
    """A live launcher has a cell of this name."""


def base_dir(environment: Mapping[str, str]) -> Path:
    """The user's private directory for cells; created by `RunDir`, mode 0700."""
    runtime = environment.get("XDG_RUNTIME_DIR")
    if runtime:
        return Path(runtime) / "kvrelay"
    return Path(environment.get("TMPDIR") or "/tmp") / f"kvrelay-{os.getuid()}"


def client_endpoint(cell: Path) -> str:
    return f"ipc://{cell}/client.sock"


def worker_endpoint(cell: Path) -> str:
    return f"ipc://{cell}/worker.sock"


def launcher_endpoint(cell: Path) -> str:
    return f"ipc://{cell}/launcher.sock"


class RunDir:
    """Holds the directory of one cell for the life of a launcher."""

    def __init__(self, base: Path, name: str) -> None:
        """
        Raises:
            CellInUse: another launcher holds it.
            ValueError: the name makes no good file name, or the path is too long for a socket.
            PermissionError: the directory belongs to somebody else.
        """
        if not name or not all(c.isalnum() or c in "-_" for c in name):
            raise ValueError(f"cell name {name!r}: use letters, digits, '-' and '_'")
        self.path = base / name
        if len(os.fsencode(self.path / "launcher.sock")) > _MAX_SOCKET_PATH_BYTES:
            raise ValueError(f"{self.path} is too long for a socket; set XDG_RUNTIME_DIR to a shorter directory")
        for directory in (base, self.path):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            info = directory.lstat()  # of a link, its maker: who else could point at one of our own directories?
            if info.st_uid != os.getuid():
                raise PermissionError(f"{directory} belongs to another user")
            directory.chmod(stat.S_IRWXU)
        self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise CellInUse(f"a cell named {name!r} is running; stop it, or choose another name with --name") from error
        for leftover in self.path.iterdir():
            if leftover.name != "lock":
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def is_running(base: Path, name: str) -> bool:
    """Whether a live launcher holds the cell."""
    lock = base / name / "lock"
    if not lock.exists():
        return False
    descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
