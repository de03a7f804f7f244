"""What can be typed after `kvrelay eval`?

The flags and their help; `launch.evaluation.conduct` does the work.
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import uvloop
from cyclopts import Parameter
from rich.console import Console

from launch import models
from launch.cell_flags import CellFlags
from launch.evaluation.asked import Asked
from launch.evaluation.conduct import Failures, Interrupted, Outputs, evaluate
from launch.evaluation.flags import (
    CELL,
    MEASURING,
    OUTPUT,
    CampaignFlags,
    LoadFlags,
    SloFlags,
    WorkloadFlags,
)
from launch.evaluation.recording import document
from launch.evaluation.tables import findings, print_run, print_runs
from launch.rundir import base_dir
from launch.terminal import end

EXAMPLES = """
Examples

A first look: 20 requests, 1 per second, at a cell that is started for it.

    kvrelay eval --requests 20

How many requests get their first token in half a second, and 20 tokens per second from then on?

    kvrelay eval --rate 2 --duration 60 --slo-ttft-ms 500 --slo-tpot-ms 50

The highest rate at which 90 % of them do, beside that of two aggregated workers:

    kvrelay eval 1P1D --goodput --compare aggregated:2 --slo-ttft-ms 500 --slo-tpot-ms 50

A recorded trace, shrunk until it fits the model, at half its speed, on any server:

    kvrelay eval http://127.0.0.1:8000 --azure trace.csv --fit 1 --trace-clock 0.5
"""


def run_eval(  # noqa: PLR0913 - the flags of an evaluation
    system: Annotated[
        str | None,
        Parameter(
            help="What is measured: a cell to start, `1P1D`, `2P1D` or `aggregated:2`; a running one, `cell:NAME`; or "
            "any server with the OpenAI API, `http://HOST:PORT`. If not given: the running cell `default`, else 1P1D."
        ),
    ] = None,
    *,
    workload: WorkloadFlags = WorkloadFlags(),  # noqa: B008 - frozen
    load: LoadFlags = LoadFlags(),  # noqa: B008 - frozen
    slo: SloFlags = SloFlags(),  # noqa: B008 - frozen
    campaign: CampaignFlags = CampaignFlags(),  # noqa: B008 - frozen
    warm_up: Annotated[
        float, Parameter(group=MEASURING, help="Seconds of arrivals at the beginning that are left out of the numbers.")
    ] = 0.0,
    cool_down: Annotated[float, Parameter(group=MEASURING, help="And at the end.")] = 0.0,
    grace: Annotated[
        float, Parameter(group=MEASURING, help="Seconds for answers after the last request; the rest is cut off.")
    ] = 60.0,
    priming: Annotated[
        int, Parameter(group=MEASURING, help="Requests that a fresh system gets first, which are in no number.")
    ] = 2,
    one_at_a_time: Annotated[
        bool, Parameter(group=MEASURING, negative="", help="Of several cells start each only for its own runs.")
    ] = False,
    api_key: Annotated[
        str | None,
        Parameter(
            group=MEASURING, env_var=["KVRELAY_API_KEY", "OPENAI_API_KEY"], help="For a URL.", show_default=False
        ),
    ] = None,
    url_model: Annotated[str | None, Parameter(group=MEASURING, help="Which model of a URL; its first one.")] = None,
    tokenizer: Annotated[
        Path | None, Parameter(group=MEASURING, help="Directory of a URL's tokenizer, for random prompts.")
    ] = None,
    output: Annotated[
        Path | None, Parameter(group=OUTPUT, help="Directory of the results; a dated one below ./eval-results.")
    ] = None,
    title: Annotated[str | None, Parameter(group=OUTPUT, help="Of the study, for its report.")] = None,
    report: Annotated[bool, Parameter(group=OUTPUT, help="Draw report.html in that directory.")] = True,
    quiet: Annotated[bool, Parameter(group=OUTPUT, negative="", help="No progress, only the results.")] = False,
    json: Annotated[bool, Parameter(group=OUTPUT, negative="", help="Print study.json instead of tables.")] = False,
    verbose: Annotated[bool, Parameter(group=OUTPUT, negative="", help="Show the log of every process.")] = False,
    cell: Annotated[CellFlags, Parameter(group=CELL)] = CellFlags(),  # noqa: B008 - frozen
) -> None:
    """Measure a server under load as its clients see it: latencies, throughput, and how many requests met their SLO.

    Requests are sent open loop: each at its planned time, whatever became of those before it, as users do. Every one
    of them counts. Times are taken here, at the client; the result says so when the client or the server could not
    keep up, because then its numbers mean something else. docs/evaluation.md explains all of it.
    """
    asked = Asked(
        system=system,
        workload=workload,
        load=load,
        slo=slo,
        campaign=campaign,
        cell=cell,
        warm_up_s=warm_up,
        cool_down_s=cool_down,
        grace_s=grace,
        priming=priming,
        one_at_a_time=one_at_a_time,
        command=tuple(sys.argv[1:]),
        api_key=api_key,
        url_model=url_model,
        tokenizer=tokenizer,
        output=output,
        title=title,
        quiet=quiet or json,
        verbose=verbose,
    )
    cache_dir = models.default_cache_dir(os.environ, Path.home())
    try:
        outputs = uvloop.run(evaluate(asked, base_dir(os.environ), cache_dir))
    except Failures as error:
        end(str(error))
    except (asyncio.CancelledError, KeyboardInterrupt):
        end("interrupted before there was a result", 130)
    except Interrupted as error:
        end(str(error), 130)
    _show(outputs, json=json)
    if report:
        _draw(outputs.recording.directory, json=json)
    if outputs.failure is not None:
        end(outputs.failure)


def _draw(directory: Path, *, json: bool) -> None:
    """The results are on the terminal and on the disk: a page that cannot be drawn takes nothing away."""
    console = Console(stderr=json, emoji=False)
    try:
        from launch.evaluation.report.files import write  # noqa: PLC0415 - matplotlib takes its time

        said = f"report: {write(directory)}"
    except Exception as error:  # noqa: BLE001 - whatever it is
        said = f"no report: {type(error).__name__}: {error}"
    console.print(said, highlight=False, markup=False, soft_wrap=True)


def _show(outputs: Outputs, *, json: bool) -> None:
    console = Console(emoji=False)
    study = outputs.study
    if json:
        sys.stdout.write(msgspec.json.encode(document(study)).decode() + "\n")
        return
    if len(study.runs) > 1:
        print_runs(console, study.runs)
    else:
        print_run(console, study.runs[0], study.slo)
    for line in findings(study):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print("how it was measured: " + "; ".join(study.workload), highlight=False, markup=False, soft_wrap=True)
    console.print(f"results: {outputs.recording.directory}", highlight=False, markup=False, soft_wrap=True)
