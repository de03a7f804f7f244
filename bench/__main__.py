"""What does this machine do with kvrelay?

`python -m bench` runs every benchmark, prints a table of each as soon as it is done, and writes all results to one JSON
file. Nothing else should run on the machine meanwhile; the load before the run is written down.
"""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated

import cyclopts
from cyclopts import Parameter

from bench import coordinator, handoff, machine, report, startup, transfer
from bench.rows import Row

_RESULTS = Path(__file__).parent / "results"
_BENCHMARKS: dict[str, Callable[..., Coroutine[None, None, list[Row]]]] = {
    "transfer": transfer.run,
    "handoff": handoff.run,
    "coordinator": coordinator.run,
    "startup": startup.run,
}
