"""Does a process end when, and only when, something in it is broken?"""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROLOGUE = """
import asyncio, os
from runtime import logs, process
logs.configure("test")
"""


def run(main: str) -> subprocess.CompletedProcess[str]:
    """A process whose `main(stop)` this is."""
    script = PROLOGUE + textwrap.dedent(main) + "\nprocess.run(main)\nprint('a good end')\n"
    command = [sys.executable, "-c", script]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_a_main_that_returns_is_a_good_end() -> None:
    ended = run("async def main(stop): pass")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "a good end\n", "")


def test_what_main_raises_ends_the_process_with_a_traceback() -> None:
    ended = run("async def main(stop): raise AssertionError('broken')")
    assert ended.returncode == 1
    assert "this process cannot go on" in ended.stderr
    assert "AssertionError: broken" in ended.stderr


@pytest.mark.parametrize("how", ["loop.call_soon(fail)", "loop.add_reader(ready, fail)", "loop.call_later(0.01, fail)"])
def test_what_a_callback_raises_ends_the_process(how: str) -> None:
    """Messages are handled in callbacks: their exceptions have no caller, and asyncio would only log them."""
    ended = run(
        f"""
        def fail(): raise AssertionError("broken")
        async def main(stop):
            loop = asyncio.get_running_loop()
            ready, written = os.pipe()
            os.write(written, b"x")
            {how}
            await asyncio.sleep(30)
        """
    )
    assert ended.returncode == 1
    assert "AssertionError: broken" in ended.stderr


def test_a_failure_that_nobody_asked_for_does_not_end_the_process() -> None:
    """A future of a lost peer may be dropped unread."""
    ended = run(
        """
        async def main(stop):
            asyncio.get_running_loop().create_future().set_exception(OSError("lost"))
            await asyncio.sleep(0.01)
        """
    )
    assert ended.returncode == 0
    assert "never retrieved" in ended.stderr


def test_sigterm_asks_for_a_good_end() -> None:
    ended = run(
        """
        import signal
        async def main(stop):
            os.kill(os.getpid(), signal.SIGINT)  # a terminal sends it to everybody; it is the launcher's business
            os.kill(os.getpid(), signal.SIGTERM)
            await stop.wait()
        """
    )
    assert (ended.returncode, ended.stdout) == (0, "a good end\n")
