"""How is aiperf run against a cell, and where does it write its numbers?

It sends no probe unless asked to, scrapes GET /metrics by itself, and counts tokens as the server's usage says. With
HF_HUB_OFFLINE=1, aiperf 0.13 takes a tokenizer's directory for the id of a repository and fails: so it runs without.
"""

from pathlib import Path

import msgspec

from bench.compat.tool import Counted, Load, Tool

_FOLDER = "artifacts"


class _Average(msgspec.Struct):
    avg: float


class _Report(msgspec.Struct):
    request_count: _Average
    total_isl: _Average
    total_osl: _Average
    time_to_first_token: _Average
    inter_token_latency: _Average


def command(load: Load) -> list[str]:
    return [
        "aiperf",
        "profile",
        *("--model", load.model),
        *("--tokenizer", load.tokenizer),
        *("--url", load.url),
        *("--endpoint-type", "chat"),
        "--streaming",
        *("--isl", str(load.prompt_tokens)),
        *("--osl", str(load.output_tokens)),
        *("--extra-inputs", "ignore_eos:true"),
        "--use-server-token-count",
        *("--concurrency", str(load.concurrency)),
        *("--request-count", str(load.requests)),
        *("--random-seed", "1"),
        *("--artifact-dir", _FOLDER),
        *("--ui", "none"),
    ]


def read(folder: Path, _printed: str) -> Counted:
    """Newer versions put a folder named after the run into the one that they are given."""
    reports = sorted((folder / _FOLDER).rglob("profile_export_aiperf.json"))
    return parse(reports[0].read_bytes())


def parse(report: bytes) -> Counted:
    found = msgspec.json.decode(report, type=_Report)
    return Counted(
        requests=int(found.request_count.avg),
        prompt_tokens=int(found.total_isl.avg),
        completion_tokens=int(found.total_osl.avg),
        ttft_s=found.time_to_first_token.avg / 1000,
        itl_s=found.inter_token_latency.avg / 1000,
    )


TOOL = Tool(
    name="aiperf",
    requirement="aiperf==0.13.*",
    package="aiperf",
    command=command,
    read=read,
    environment={},
    definitions="TTFT: request started to first content at the client. ITL: (latency - TTFT) / (tokens - 1) of a "
    "request, in the mean of requests, which are of equal length here.",
    notes="With HF_HUB_OFFLINE=1, version 0.13 takes the directory of a tokenizer for the id of a repository and "
    "fails; without it, it loads the directory. Reads `GET /metrics` by itself. "
    "`aiperf profile --use-server-token-count` takes token counts from the server's usage instead of counting the "
    "texts again.",
)
