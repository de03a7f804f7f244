"""How does a part of the check run tests, and what does it tell of them?"""

import os
import re
import subprocess
import sys
from typing import IO

from bench.gpu.parts import Tell
from bench.machine import ROOT
from bench.rows import summarise

_NO_TESTS_RAN = 5  # of pytest's exit codes
_PYTEST = (
    *("-m", "pytest", "-v", "--tb=short", "--maxfail=20", "-p", "no:cacheprovider"),
    *("-p", "pytest_timeout", "--timeout=75"),  # a test that hangs tells where, before its part is killed
    *("-W", "default"),  # what other versions than the pinned ones warn of is shown, and fails nothing
)
_NO_OTHER_PLUGINS = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # whatever else is installed on this machine
_COUNT = re.compile(r"(\d+) (passed|failed|errors?|skipped|xfailed|deselected)")


def run_tests(tell: Tell, benchmark: str, path: str) -> None:
    """All tests below `path`; ends the process with pytest's exit code if one fails.

    Raises:
        AssertionError: there are no tests, or all of them were skipped: then nothing was checked.
    """
    if not (ROOT / path).exists():
        raise AssertionError(f"{path} is not there")
    code, printed = _pytest(path)
    counted = counts(printed)
    passed = counted.get("passed", 0)
    tell(
        summarise(
            benchmark,
            "tests passed",
            [float(passed)],
            unit="tests",
            limited_by=", ".join(f"{count} {what}" for what, count in counted.items()) or "pytest says nothing of them",
            parameters={"tests": path},
        )
    )
    if code not in (0, _NO_TESTS_RAN):
        sys.exit(code)
    if not passed:
        raise AssertionError(f"no test of {path} ran to its end: nothing is known")


def _pytest(path: str) -> tuple[int, str]:
    """Its exit code, and what it printed, which is passed on as it comes: a test that hangs is the last one named."""
    with subprocess.Popen(
        [sys.executable, *_PYTEST, path],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **_NO_OTHER_PLUGINS},
    ) as process:
        printed = _passed_on(process.stdout) if process.stdout is not None else b""
    return process.returncode, printed.decode(errors="replace")


def _passed_on(stream: IO[bytes]) -> bytes:
    printed = bytearray()
    while chunk := os.read(stream.fileno(), 1 << 16):
        os.write(sys.stdout.fileno(), chunk)
        printed += chunk
    return bytes(printed)


def counts(output: str) -> dict[str, int]:
    """Of pytest's last line, such as `3 passed, 1 skipped in 0.1s`."""
    lines = [line for line in output.splitlines() if _COUNT.search(line)]
    return {what: int(count) for count, what in _COUNT.findall(lines[-1])} if lines else {}
