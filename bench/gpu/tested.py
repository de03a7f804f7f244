"""How does a part of the check run tests, and what does it tell of them?"""

import re
import subprocess
import sys

from bench.gpu.parts import Tell
from bench.machine import ROOT
from bench.rows import summarise

_NO_TESTS_RAN = 5  # of pytest's exit codes
_COUNT = re.compile(r"(\d+) (passed|failed|errors?|skipped|xfailed|deselected)")


def run_tests(tell: Tell, benchmark: str, path: str) -> None:
    """All tests below `path`; ends the process with pytest's exit code if one fails.

    Raises:
        AssertionError: there are no tests, or all of them were skipped: then nothing was checked.
    """
    if not (ROOT / path).exists():
        raise AssertionError(f"{path} is not there")
    command = [sys.executable, "-m", "pytest", "-q", "--maxfail=20", "-p", "no:cacheprovider", path]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(done.stdout, flush=True)
    counted = counts(done.stdout)
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
    if done.returncode not in (0, _NO_TESTS_RAN):
        sys.exit(done.returncode)
    if not passed:
        raise AssertionError(f"no test of {path} ran to its end: nothing is known")


def counts(output: str) -> dict[str, int]:
    """Of pytest's last line, such as `3 passed, 1 skipped in 0.1s`."""
    lines = [line for line in output.splitlines() if _COUNT.search(line)]
    return {what: int(count) for count, what in _COUNT.findall(lines[-1])} if lines else {}
