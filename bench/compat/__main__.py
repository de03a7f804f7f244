"""Do the tools that people use agree with this server about what it did?

`python -m bench.compat` starts a cell with the default model as `kvrelay up` does, runs each tool against it unchanged
and through a tap, and writes docs/compatibility.md and a JSON file with every number. The machine should be idle.
"""

import asyncio
import dataclasses
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import cyclopts
import msgspec
from cyclopts import Parameter

from bench.cell import cell, model_options
from bench.compat import aiperf, environments, guidellm, langchain, relaying, report, server
from bench.compat.agreement import Agreement, agreement
from bench.compat.exchanges import exchanges
from bench.compat.relaying import Added
from bench.compat.runs import Run, summed
from bench.compat.streamed import streamed
from bench.compat.tap import Recording, tap
from bench.compat.tool import Counted, Load, Tool
from bench.machine import ROOT, environment
from coordinator.config import HttpLimits
from launch.config import CellOptions
from launch.errors import ModelUnavailable
from launch.http_options import http_config
from launch.supervisor import CellFailed

_PAGE = ROOT / "docs" / "compatibility.md"
_RESULTS = ROOT / "bench" / "results"
_TIMEOUT_S = 300
_LOADS = ((1, 20, 0), (4, 32, 0), (2, 32, 6))  # concurrency, requests, spread of the tokens of an answer
_SHOWN = ("http://127.0.0.1:8000", "MODEL_DIRECTORY")

Name = Literal["guidellm", "aiperf", "langchain"]
TOOLS: dict[Name, Tool] = {"guidellm": guidellm.TOOL, "aiperf": aiperf.TOOL, "langchain": langchain.TOOL}

app = cyclopts.App(name="python -m bench.compat", help="Run the tools that people use against a cell, and compare.")


class ToolFailed(Exception):
    """A tool ended badly; the text has the end of what it printed."""


@app.default
def compat(
    *,
    only: Annotated[Name | None, Parameter(help="Run this tool alone, and write no page.")] = None,
) -> None:
    """Run the tools, and keep what they and the server said."""
    where = environment("python -m bench.compat" + (f" --only {only}" if only else ""))
    tools = [TOOLS[only]] if only else list(TOOLS.values())
    programs = {tool.name: environments.make(tool) for tool in tools}
    added, runs = asyncio.run(_measure(tools, programs))
    page = report.page(runs, {tool.name: tool for tool in tools}, where, added)
    print(page)
    if only is None:
        _PAGE.write_text(page)
        path = _RESULTS / f"{where.date}-{where.commit}{'-dirty' if where.dirty else ''}-compat.json"
        path.write_bytes(
            msgspec.json.format(msgspec.json.encode({"environment": where, "tap": added, "runs": runs}), indent=2)
            + b"\n"
        )
        print(f"{_PAGE.relative_to(ROOT)} and {path.relative_to(ROOT)} are written")


def cell_options() -> CellOptions:
    """What `kvrelay up --port 0` chooses."""
    http = http_config("127.0.0.1", 0, api_keys=(), allowed_hosts=(), limits=HttpLimits(), metrics_compat="none")
    return msgspec.structs.replace(model_options(), http=http)


async def _measure(tools: Sequence[Tool], programs: dict[str, Path]) -> tuple[Added, list[Run]]:
    runs = []
    options = cell_options()
    print("what the tap adds ...", flush=True)
    added = await relaying.added(options)
    async with cell(options) as running:
        url, directory = running.api or "", options.model_dir or ""
        address = urlsplit(url)
        async with tap(address.hostname or "", address.port or 0) as recording:
            for tool in tools:
                for concurrency, requests, spread in _LOADS if tool is not langchain.TOOL else [(1, 0, 0)]:
                    load = Load(
                        recording.url, options.model_name, directory, concurrency, requests, output_spread=spread
                    )
                    runs.append(await _run(tool, programs[tool.name], load, url, recording))
    return added, runs


async def _run(tool: Tool, programs: Path, load: Load, server_url: str, recording: Recording) -> Run:
    print(f"{tool.name}, concurrency {load.concurrency} ...", flush=True)
    folder = environments.FOLDER / "runs" / f"{tool.name}-{load.concurrency}"
    _empty(folder)
    busy = os.getloadavg()[0]
    recording.clear()
    before = await asyncio.to_thread(server.scrape, server_url)
    printed = await _printed_by(tool, programs, load, folder)
    reported = tool.read(folder, printed)
    after = await asyncio.to_thread(server.scrape, server_url)
    shown = dataclasses.replace(load, url=_SHOWN[0], tokenizer=_SHOWN[1])
    return Run(
        tool=tool.name,
        version=environments.version(tool, programs),
        concurrency=load.concurrency,
        output_spread=load.output_spread,
        load_average=round(busy, 2),
        command=shlex.join(tool.command(shown)).replace(f"{ROOT}/", ""),
        reported=reported,
        server=_measured(server.counted(before, after), reported),
        agreement=_agreement(tool, folder, recording),
        relaying=summed(recording.relayed_s),
    )


def _agreement(tool: Tool, folder: Path, recording: Recording) -> Agreement | None:
    return None if tool.account is None else agreement(streamed(exchanges(recording.wires)), tool.account(folder))


def _measured(ours: Counted, theirs: Counted) -> Counted:
    """Without the times that the tool does not measure."""
    return ours if theirs.ttft_s is not None else msgspec.structs.replace(ours, ttft_s=None, itl_s=None, tpot_s=None)


def _empty(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


async def _printed_by(tool: Tool, programs: Path, load: Load, folder: Path) -> str:
    """
    Raises:
        ToolFailed: it ended with an error, or did not end.
    """
    program, *arguments = tool.command(load)
    log = folder / "printed.txt"
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            programs / program,
            *arguments,
            cwd=folder,
            env={"PATH": f"{programs}:/usr/bin:/bin", "HOME": os.environ.get("HOME", "/"), **tool.environment},
            stdout=out,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                code = await process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            raise
    printed = log.read_text(errors="replace")
    if code != 0:
        raise ToolFailed(f"{tool.name} ended with {code}:\n{printed[-3000:]}")
    return printed


if __name__ == "__main__":
    try:
        app()
    except (CellFailed, ModelUnavailable, ToolFailed) as error:
        sys.exit(f"error: {error}")
