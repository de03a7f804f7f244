"""What does `kvrelay doctor` do?

It examines, prints, and says by its exit code whether kvrelay would work here.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from launch.doctor.examine import examine
from launch.doctor.judge import works
from launch.doctor.report import as_json, show


def doctor(environ: Mapping[str, str], home: Path, *, json: bool) -> int:
    """The exit code: 0 when kvrelay works here, 1 when something would keep it from working.

    Raises:
        KeyboardInterrupt: a signal asked for the end; the cell has been ended.
    """
    waiting = Console(stderr=True, emoji=False)
    with (
        waiting.status("looking at this machine, and starting a small cell to measure it")
        if _draws(waiting)
        else waiting
    ):
        try:
            examination = examine(environ, home)
        except asyncio.CancelledError as cancelled:  # by a signal that asks us to end
            raise KeyboardInterrupt from cancelled
    console = Console(emoji=False)
    if json:
        console.file.write(as_json(examination) + "\n")
    else:
        show(console, examination)
    return 0 if works(examination.findings) else 1


def _draws(console: Console) -> bool:
    return console.is_terminal and not console.is_dumb_terminal
