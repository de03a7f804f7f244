"""What can be typed after `python -m bench.gpu`, and in which order do the parts run?

One after the other, each in a process of its own, until the budget is spent. Results are printed and written after each
part, so whatever ends the command keeps what it had.
"""

import os
import shlex
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import cyclopts
from cyclopts import Parameter
from msgspec.structs import replace

from bench.gpu import report
from bench.gpu.beside import beside
from bench.gpu.parts import PARTS, Outcome, Part, Rates, Settings, not_run, run_part
from bench.machine import ROOT, environment
from bench.report import describe, table

_RESULTS = ROOT / "bench" / "results"
_LEAST_S = 10.0  # a part with less time than this is not begun

app = cyclopts.App(name="python -m bench.gpu", help="Check the GPU path of this machine, and measure it.")


@app.default
def check(
    *,
    only: Annotated[
        tuple[str, ...], Parameter(help="Run this part alone; once for each. `limits` gives the others their ratios.")
    ] = (),
    interpret: Annotated[
        bool, Parameter(negative="", help="Without a GPU: try the check itself, on the CPU and a tiny model.")
    ] = False,
    budget: Annotated[float, Parameter(help="Seconds for all parts together.")] = 470.0,
    out: Annotated[Path | None, Parameter(help="Write the JSON here instead of to bench/results.")] = None,
    commit: Annotated[str | None, Parameter(help="Of this copy of the project, where git does not know it.")] = None,
) -> None:
    """Run the parts and keep what they found.

    Exit codes: 0, everything that had to is well; 1, a part failed, crashed or ran out of time; 2, there is no GPU.
    """
    unknown = set(only) - {part.name for part in PARTS}
    if unknown:
        sys.exit(f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(part.name for part in PARTS)}")
    if not interpret and not _has_gpu():
        print("no GPU: torch sees no CUDA device here. --interpret tries the check itself on a CPU", file=sys.stderr)
        sys.exit(2)
    where = environment(_command(only, interpret=interpret))
    if where.commit is None:
        where = replace(where, commit=commit)
    path = out or _RESULTS / report.file_name(where, only, on_gpu=not interpret)
    path.parent.mkdir(parents=True, exist_ok=True)
    print(describe(where), end="\n\n", flush=True)
    chosen = [part for part in PARTS if not only or part.name in only]
    outcomes: list[Outcome] = []
    until = time.perf_counter() + budget
    with TemporaryDirectory(prefix="kvg-") as directory:
        for part in chosen:
            left_s = until - time.perf_counter()
            outcomes.append(_run(part, outcomes, Path(directory), left_s, interpret=interpret))
            compared = beside([row for outcome in outcomes for row in outcome.rows])
            found = report.Check(environment=where, outcomes=tuple(outcomes), beside=tuple(compared))
            path.write_bytes(report.to_json(found))  # first: whoever reads what is printed may be gone
            print(report.part(outcomes[-1]), end="\n\n", flush=True)
    if found.beside:
        print(table(found.beside), end="\n\n")
    print(report.summary(outcomes))
    print(f"results in {path}")
    sys.exit(1 if _is_wrong(outcomes) else 0)


def _run(part: Part, before: list[Outcome], directory: Path, left_s: float, *, interpret: bool) -> Outcome:
    if interpret and not part.on_cpu:
        return not_run(part, "skipped", "it needs a GPU")
    if left_s < _LEAST_S:
        return not_run(part, "out of time", "the parts before it have spent the budget")
    rates: Rates | None = next((outcome.rates for outcome in before if outcome.rates is not None), None)
    settings = Settings(device="cpu" if interpret else "cuda:0", rates=rates, parent_pid=os.getpid())
    return run_part(part, settings, directory, min(part.limit_s, left_s))


def _is_wrong(outcomes: list[Outcome]) -> bool:
    optional = {part.name for part in PARTS if part.optional}
    return any(one.status not in ("ok", "skipped") and one.part not in optional for one in outcomes)


def _has_gpu() -> bool:
    import torch  # noqa: PLC0415 - it takes seconds

    return torch.cuda.is_available()


def _command(only: tuple[str, ...], *, interpret: bool) -> str:
    flags = [word for name in only for word in ("--only", name)] + (["--interpret"] if interpret else [])
    return shlex.join(["python", "-m", "bench.gpu", *flags])
