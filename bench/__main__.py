"""How does one command measure this machine?

`python -m bench` runs every benchmark, prints a table of each as soon as it is done, and writes all results to one JSON
file. Nothing else should run on the machine meanwhile; the load before the run is written down.
"""

import asyncio
import shlex
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Literal, Protocol

import cyclopts
from cyclopts import Parameter

from bench import coordinator, handoff, http, report, startup, transfer
from bench.machine import environment
from bench.rows import Row
from launch.errors import ModelUnavailable
from launch.supervisor import CellFailed

_RESULTS = Path(__file__).parent / "results"

Name = Literal["transfer", "handoff", "coordinator", "http", "startup"]


class _Benchmark(Protocol):
    def __call__(self, *, quick: bool) -> Coroutine[None, None, list[Row]]: ...


_BENCHMARKS: dict[Name, _Benchmark] = {
    "transfer": transfer.run,
    "handoff": handoff.run,
    "coordinator": coordinator.run,
    "http": http.run,
    "startup": startup.run,
}

app = cyclopts.App(name="python -m bench", help="Measure KV transfer, hand-off, coordinator, HTTP front and startup.")


@app.default
def bench(
    *,
    only: Annotated[Name | None, Parameter(help="Run this benchmark alone.")] = None,
    quick: Annotated[bool, Parameter(help="Fewer sizes and repetitions: does it work, is it plausible?")] = False,
    out: Annotated[Path | None, Parameter(help="Write the JSON here instead of to bench/results.")] = None,
) -> None:
    """Run the benchmarks and keep their results."""
    where = environment(_command(only, quick=quick))
    print(report.describe(where), end="\n\n", flush=True)
    rows: list[Row] = []
    for name in _BENCHMARKS if only is None else (only,):
        start = time.perf_counter()
        measured = asyncio.run(_BENCHMARKS[name](quick=quick))
        rows += measured
        print(f"{name} ({time.perf_counter() - start:.0f} s)\n{report.table(measured)}\n", flush=True)
    path = out or _RESULTS / report.file_name(where, only, quick=quick)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(report.to_json(rows, where))
    print(f"{len(rows)} results in {path}")


def _command(only: Name | None, *, quick: bool) -> str:
    """What to type for the same run; without `--out`, whose path is nobody else's."""
    flags = (["--only", only] if only is not None else []) + (["--quick"] if quick else [])
    return shlex.join(["python", "-m", "bench", *flags])


if __name__ == "__main__":
    try:
        app()
    except (CellFailed, ModelUnavailable) as error:
        sys.exit(f"error: {error}")
