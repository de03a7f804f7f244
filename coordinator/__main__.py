"""How does a coordinator process start?

`python -m coordinator CONFIG.json`, by the launcher or by hand.
"""

import asyncio
import shutil
import signal
from pathlib import Path

from coordinator.config import CoordinatorConfig
from coordinator.server import Coordinator
from coordinator.text import open_text
from runtime import config, logs, process
from runtime.clock import SystemClock
from transport.control import new_context


async def _main(settings: CoordinatorConfig, stop: asyncio.Event) -> None:
    text = open_text(Path(settings.tokenizer_dir) if settings.tokenizer_dir is not None else None)
    context = new_context()
    await Coordinator(settings, text, context, SystemClock()).run(stop)
    context.term()  # not after a failure: it would wait for ever for the sockets that nobody has closed


def main() -> None:
    settings = config.from_command_line(CoordinatorConfig)
    logs.configure("coordinator", settings.log_level)
    # The coordinator outlives a killed launcher just long enough to remove the directory of the cell.
    process.die_with_parent(settings.parent_pid, signal.SIGTERM)
    process.run(lambda stop: _main(settings, stop))
    if not process.parent_is(settings.parent_pid):
        shutil.rmtree(settings.run_dir, ignore_errors=True)


if __name__ == "__main__":
    main()
