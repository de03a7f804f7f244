"""What can be typed after `kvrelay`?

Every command reads the environment and the command line here, and nothing below does.
"""

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import cyclopts
import msgspec
from cyclopts import Parameter
from rich.console import Console

from coordinator.config import DEFAULT_HTTP_PORT
from launch import models
from launch.ask import ask, show_stats
from launch.cell_flags import CellFlags
from launch.chat import chat_loop
from launch.client import RequestFailed, ServerUnreachable, StreamingClient
from launch.config import Workers
from launch.display import CellDisplay
from launch.doctor.command import doctor as examine_machine
from launch.errors import ModelUnavailable
from launch.evaluation.command import EXAMPLES, run_eval
from launch.explain import CannotExplain, Explained, choose, newest_answers, of_cell, of_file, show, show_left_out
from launch.http_options import check_port, http_config, split_limits
from launch.rundir import CellInUse, base_dir, client_endpoint, is_running
from launch.serve import serve
from launch.stats import print_status
from launch.supervisor import CellFailed
from launch.terminal import end
from launch.trace import fetch_trace, print_trace, write_trace
from runtime.clock import SystemClock
from runtime.params import SamplingParams

app = cyclopts.App(
    name="kvrelay",
    help="A disaggregated prefill/decode LLM server: prefill workers compute prompts, their KV caches travel over UCX "
    "to decode workers, and tokens stream back.",
)
model_app = cyclopts.App(name="model", help="The models on this machine.")
app.command(model_app)
app.command(run_eval, name="eval", help_epilogue=EXAMPLES)

Name = Annotated[str, Parameter(help="Name of the cell; several can run side by side.")]


@app.command
def up(  # noqa: PLR0913 - the flags of the server
    *,
    cell: CellFlags = CellFlags(),  # noqa: B008 - frozen
    prefill: Annotated[int | None, Parameter(help="Prefill workers; 1 if not given.")] = None,
    decode: Annotated[int | None, Parameter(help="Decode workers; 1 if not given.")] = None,
    aggregated: Annotated[
        int | None, Parameter(help="Instead of those: workers that compute prompts and decode, without a hand-off.")
    ] = None,
    seed: Annotated[int, Parameter(help="Seed of the dummy weights.")] = 0,
    host: Annotated[str, Parameter(help="Address of the OpenAI API; beyond this machine only with an API key.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, Parameter(help="Port of the OpenAI API; 0 takes a free one.")] = DEFAULT_HTTP_PORT,
    http: Annotated[bool, Parameter(help="Serve the OpenAI API.")] = True,
    api_key: Annotated[
        tuple[str, ...],
        Parameter(env_var="KVRELAY_API_KEY", help="Ask clients for this key; the environment hides it from `ps`."),
    ] = (),
    allowed_host: Annotated[
        tuple[str, ...], Parameter(help="Names that the Host header may have; this machine's own if there is no key.")
    ] = (),
    limit: Annotated[
        tuple[str, ...],
        Parameter(help="A bound as NAME=VALUE, such as max_output_tokens=512; docs/http.md has all."),
    ] = (),
    metrics_compat: Annotated[
        Literal["none", "vllm"], Parameter(help="Show metrics under the names of vLLM as well.")
    ] = "none",
    name: Name = "default",
    drain_timeout: Annotated[
        float, Parameter(help="Seconds that requests in flight get after the first Ctrl-C.")
    ] = 60.0,
    verbose: Annotated[bool, Parameter(help="Show the log of every process.")] = False,
) -> None:
    """Start a cell: one coordinator and its workers. Ctrl-C drains it, a second one stops it at once."""
    display = CellDisplay(Console(stderr=True, emoji=False), verbose=verbose)
    workers = _workers(prefill, decode, aggregated)
    try:
        http_limits, request_limits = split_limits(limit)
        api = None
        if http:
            api = http_config(
                host,
                port,
                api_keys=api_key,
                allowed_hosts=allowed_host,
                limits=http_limits,
                metrics_compat=metrics_compat,
            )
            check_port(host, port)
        with display:
            directory = cell.model_dir(_cache_dir(), display.pull_progress)
        options = cell.options(directory, workers, seed=seed, requests=request_limits, http=api)
        asyncio.run(serve(options, base_dir(os.environ), name, display, drain_timeout))
    except (CellFailed, CellInUse, ModelUnavailable, ValueError) as error:
        end(str(error))
    except TimeoutError:
        end(f"requests were still in flight after {drain_timeout:g} s of draining; they were cut off")
    except KeyboardInterrupt:
        end("interrupted", 130)


@app.command
def generate(  # noqa: PLR0913 - the flags of a request
    prompt: Annotated[str, Parameter(help="The user's message; `-` reads it from standard input.")],
    *,
    raw: Annotated[bool, Parameter(help="Continue the prompt as it is, without the model's chat template.")] = False,
    system: Annotated[str | None, Parameter(help="A system message.")] = None,
    max_tokens: Annotated[int | None, Parameter(help="Tokens to generate at most.")] = 256,
    temperature: Annotated[float, Parameter(help="0 is greedy.")] = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: Annotated[int | None, Parameter(help="The same seed gives the same tokens.")] = None,
    stop: Annotated[tuple[str, ...], Parameter(help="End before this text; can be given several times.")] = (),
    ignore_eos: Annotated[bool, Parameter(help="Go on after the model's end-of-sequence token.")] = False,
    stats: Annotated[bool, Parameter(help="Print where the time went.")] = False,
    name: Name = "default",
) -> None:
    """Ask a running cell for one answer."""
    text = sys.stdin.read() if prompt == "-" else prompt
    sampling = _sampling(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=stop,
        ignore_eos=ignore_eos,
    )
    messages = None if raw else [*([("system", system)] if system is not None else []), ("user", text)]

    async def once() -> None:
        async with StreamingClient(_endpoint(name)) as client:
            completion = await ask(client, messages, sampling, prompt=text if raw else None)
        if stats:
            show_stats(completion)

    _run_client(once())


@app.command
def status(*, name: Name = "default") -> None:
    """Show the workers of a running cell, their pages and their requests."""

    async def once() -> None:
        async with StreamingClient(_endpoint(name)) as client:
            print_status(Console(emoji=False), await client.status())

    _run_client(once())


@app.command
def explain(
    which: Annotated[
        str, Parameter(help="A number, an id (`chatcmpl-...`), `slowest`, `last`, or a percentile such as `p99`.")
    ] = "slowest",
    *,
    results: Annotated[
        Path | None, Parameter(help="Results of an evaluation (JSON lines) instead of a running cell's newest answers.")
    ] = None,
    name: Name = "default",
) -> None:
    """Say where the time of one request went, and what would have made it shorter."""

    async def ask_cell() -> None:
        async with StreamingClient(_endpoint(name)) as client:
            answers = await newest_answers(client)
        show_left_out(Console(stderr=True, emoji=False), answers)
        show_one(of_cell(answers))

    def show_one(requests: Sequence[Explained]) -> None:
        show(Console(emoji=False), choose(requests, which), requests)

    try:
        if results is None:
            _run_client(ask_cell())
        else:
            show_one(of_file(results))
    except CannotExplain as error:
        end(str(error))


@app.command
def trace(
    *,
    last: Annotated[float, Parameter(help="Seconds to look back.")] = 10.0,
    seconds: Annotated[float | None, Parameter(help="Instead: the next so many seconds.")] = None,
    output: Annotated[Path, Parameter(help="Where to write it.")] = Path("trace.json"),
    name: Name = "default",
) -> None:
    """Write what a running cell has just done as a timeline for ui.perfetto.dev or chrome://tracing."""

    async def once() -> None:
        async with StreamingClient(_endpoint(name)) as client:
            if seconds is not None:
                await SystemClock().sleep(seconds)
            document = await fetch_trace(client, last if seconds is None else seconds)
        write_trace(document, output)
        print_trace(Console(stderr=True, emoji=False), document, output)

    _span(last if seconds is None else seconds)
    try:
        _run_client(once())
    except OSError as error:
        end(f"{output}: {error.strerror}")


def _span(seconds: float) -> None:
    if not 0 < seconds <= 1e9:
        end(f"a timeline of {seconds:g} s: give a positive number of seconds")


@app.command
def chat(
    *,
    system: Annotated[str | None, Parameter(help="A system message.")] = None,
    max_tokens: Annotated[int | None, Parameter(help="Tokens per answer at most.")] = 512,
    temperature: Annotated[float, Parameter(help="0 is greedy.")] = 0.0,
    seed: int | None = None,
    stats: Annotated[bool, Parameter(help="Print where the time went after each answer.")] = False,
    name: Name = "default",
) -> None:
    """Talk to a running cell. Ctrl-C stops an answer, Ctrl-D leaves."""
    sampling = _sampling(max_tokens=max_tokens, temperature=temperature, seed=seed)
    try:
        chat_loop(_endpoint(name), sampling, system=system, stats=stats)
    except ServerUnreachable as error:
        end(str(error))


@app.command
def doctor(*, json: Annotated[bool, Parameter(help="Print facts and findings for a program.")] = False) -> None:
    """Say what this machine has, what would be slow or wrong, and what to do about it."""
    try:
        code = examine_machine(os.environ, Path.home(), json=json)
    except KeyboardInterrupt:
        end("interrupted", 130)
    raise SystemExit(code)


@app.command
def report(
    directory: Annotated[Path, Parameter(help="What an evaluation left: `study.json` and the requests of its runs.")],
    *,
    output: Annotated[Path | None, Parameter(help="The page; `report.html` in the directory if not given.")] = None,
) -> None:
    """Make the page of an evaluation again from its results."""
    from launch.evaluation.report.files import StudyUnreadable, write  # noqa: PLC0415 - matplotlib takes its time

    try:
        print(write(directory, output))  # noqa: T201 - the command's output
    except (StudyUnreadable, OSError) as error:
        end(str(error))


@model_app.command
def pull(model: Annotated[str, Parameter(help="The model to fetch.")] = models.DEFAULT_MODEL) -> None:
    """Fetch a model, check it and convert it once, so that later starts load in seconds."""
    display = CellDisplay(Console(stderr=True, emoji=False), verbose=False)
    try:
        with display:
            directory = models.resolve(model, _cache_dir(), display.pull_progress)
    except ModelUnavailable as error:
        end(str(error))
    except KeyboardInterrupt:
        end("interrupted; the same command goes on where this one stopped", 130)
    print(directory)  # noqa: T201 - the command's output


def _sampling(**choices: object) -> SamplingParams:
    """The parameters, checked as the server would check them."""
    try:
        return msgspec.convert(choices, SamplingParams)
    except msgspec.ValidationError as error:
        end(f"sampling parameters: {error}")


def _workers(prefill: int | None, decode: int | None, aggregated: int | None) -> Workers:
    if aggregated is None:
        return Workers(prefill=1 if prefill is None else prefill, decode=1 if decode is None else decode)
    if prefill is not None or decode is not None:
        end("--aggregated workers do both: leave --prefill and --decode out")
    if aggregated < 1:
        end(f"--aggregated {aggregated}: a cell needs at least one worker")
    return Workers(prefill=0, decode=0, aggregated=aggregated)


def _endpoint(name: str) -> str:
    base = base_dir(os.environ)
    if not is_running(base, name):
        end(f"no cell named {name!r} is running; start one with `kvrelay up` and wait for its ready line")
    return client_endpoint(base / name)


def _cache_dir() -> Path:
    return models.default_cache_dir(os.environ, Path.home())


def _run_client(main: "asyncio._CoroutineLike[None]") -> None:
    try:
        asyncio.run(main)  # type: ignore[arg-type]  # a coroutine
    except (RequestFailed, ServerUnreachable) as error:
        end(str(error))


def main() -> None:
    app()
