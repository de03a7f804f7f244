"""What does the whole path look like, once, from nothing to nothing?

`make demo`: starts a cell with the default model on this machine's CPU, asks it one question, prints the answer with
its ledger, and ends every process.
"""

import asyncio
import os
import sys
from pathlib import Path

from rich.console import Console

from launch import models
from launch.ask import ask, show_stats
from launch.cell import running_cell
from launch.client import StreamingClient
from launch.config import CellOptions
from launch.display import CellDisplay
from launch.errors import ModelUnavailable
from launch.rundir import base_dir
from launch.supervisor import CellFailed
from runtime.params import SamplingParams

QUESTION = "What is the capital of France?"


async def _demo(display: CellDisplay, model_dir: Path) -> None:
    options = CellOptions(model_dir=str(model_dir), model_name=models.DEFAULT_MODEL)
    name = f"demo-{os.getpid()}"
    async with running_cell(options, base_dir(os.environ), name, display.observer()) as cell:
        display.ready(cell)
        async with StreamingClient(cell.endpoint) as client:
            print(f"\n> {QUESTION}")  # noqa: T201 - the demo is a conversation
            completion = await ask(client, [("user", QUESTION)], SamplingParams(temperature=0.0, max_tokens=64))
        show_stats(completion)


def main() -> None:
    display = CellDisplay(Console(stderr=True, emoji=False), verbose=False)
    try:
        with display:
            model_dir = models.resolve(
                models.DEFAULT_MODEL, models.default_cache_dir(os.environ, Path.home()), display.pull_progress
            )
            asyncio.run(_demo(display, model_dir))
    except (CellFailed, ModelUnavailable) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
