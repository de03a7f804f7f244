"""How is aiperf run against a cell, and where does it write its numbers?

It sends no probe unless asked to, scrapes GET /metrics by itself, and counts tokens as the server's usage says. With
HF_HUB_OFFLINE=1, aiperf 0.13 takes a tokenizer's directory for the id of a repository and fails: so it runs without.
"""

from collections.abc import Iterable
from pathlib import Path

import msgspec

from bench.compat.tool import Account, Counted, Load, Record, Tool

_FOLDER = "artifacts"


class _Average(msgspec.Struct):
    avg: float


class _Summary(msgspec.Struct):
    """In milliseconds. Interpolated as NumPy does; but those of gaps, which come from a t-digest, are not read."""

    avg: float
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None


class _Report(msgspec.Struct):
    request_count: _Average
    total_isl: _Average
    total_osl: _Average
    time_to_first_token: _Summary
    inter_token_latency: _Summary
    inter_chunk_latency: _Average
    request_latency: _Summary


class _Value(msgspec.Struct):
    value: float  # milliseconds


class _Gaps(msgspec.Struct, frozen=True):
    value: list[float] = []


class _Metrics(msgspec.Struct):
    time_to_first_token: _Value | None = None
    inter_token_latency: _Value | None = None
    request_latency: _Value | None = None
    inter_chunk_latency: _Gaps = _Gaps()


class _Metadata(msgspec.Struct):
    x_request_id: str
    benchmark_phase: str


class _Line(msgspec.Struct):
    """One request, in `profile_export.jsonl`."""

    metadata: _Metadata
    metrics: _Metrics


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
        *(("--osl-stddev", str(load.output_spread)) if load.output_spread else ()),
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
        itl_s=found.inter_chunk_latency.avg / 1000,
        tpot_s=found.inter_token_latency.avg / 1000,
    )


def account(folder: Path) -> Account:
    reports = sorted((folder / _FOLDER).rglob("profile_export_aiperf.json"))
    lines = reports[0].with_name("profile_export.jsonl").read_bytes().splitlines()
    return parse_account(reports[0].read_bytes(), lines)


def parse_account(report: bytes, lines: Iterable[bytes]) -> Account:
    found = msgspec.json.decode(report, type=_Report)
    records = [msgspec.json.decode(line, type=_Line) for line in lines if line.strip()]
    return Account(
        statistics={
            "ttft": _statistics(found.time_to_first_token),
            "tpot": _statistics(found.inter_token_latency),
            "itl": {"mean": found.inter_chunk_latency.avg / 1000},
            "e2e": _statistics(found.request_latency),
        },
        records=tuple(_record(line) for line in records if line.metadata.benchmark_phase == "profiling"),
    )


def _statistics(found: _Summary) -> dict[str, float]:
    told = {"mean": found.avg, "p50": found.p50, "p90": found.p90, "p95": found.p95, "p99": found.p99}
    return {name: value / 1000 for name, value in told.items() if value is not None}


def _record(line: _Line) -> Record:
    def seconds(value: _Value | None) -> float | None:
        return None if value is None else value.value / 1000

    return Record(
        name=line.metadata.x_request_id,
        ttft_s=seconds(line.metrics.time_to_first_token),
        tpot_s=seconds(line.metrics.inter_token_latency),
        e2e_s=seconds(line.metrics.request_latency),
        gaps_s=tuple(gap / 1000 for gap in line.metrics.inter_chunk_latency.value),
    )


TOOL = Tool(
    name="aiperf",
    requirement="aiperf==0.13.*",
    package="aiperf",
    command=command,
    read=read,
    account=account,
    environment={},
    definitions="TTFT: from before a connection is taken or made to first content at the client. What it "
    "calls ITL is our TPOT: (latency - TTFT) / (tokens - 1) of a request, and its mean is that of requests. "
    "Our ITL is its inter-chunk latency, ICL: gaps between chunks with content, in the mean of all gaps. Its request "
    "latency is our E2E: it ends with the last content. Percentiles are NumPy's, but those of ICL, which come from a "
    "t-digest and are taken of its records here.",
    notes="With HF_HUB_OFFLINE=1, version 0.13 takes the directory of a tokenizer for the id of a repository and "
    "fails; without it, it loads the directory. Reads `GET /metrics` by itself. "
    "`aiperf profile --use-server-token-count` takes token counts from the server's usage instead of counting the "
    "texts again.",
)
