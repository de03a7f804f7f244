"""How is guidellm run against a cell, and where does it write its numbers?

It asks GET /health and GET /v1/models first, sends `ignore_eos`, `max_completion_tokens` and continuous usage, and
takes token counts from the server's usage.
"""

from pathlib import Path

import msgspec

from bench.compat.tool import Account, Counted, Load, Record, Tool

_OUT = "benchmarks.json"


class _Statistic(msgspec.Struct):
    mean: float
    total_sum: float
    count: float


class _Successful(msgspec.Struct):
    successful: _Statistic


class _Metrics(msgspec.Struct):
    prompt_token_count: _Successful
    output_token_count: _Successful
    time_to_first_token_ms: _Successful
    inter_token_latency_ms: _Successful
    request_latency: _Successful  # in seconds


class _Timings(msgspec.Struct):
    """Seconds of the machine's time of day."""

    request_start: float
    first_token_iteration: float | None = None
    last_token_iteration: float | None = None


class _Info(msgspec.Struct):
    timings: _Timings


class _Request(msgspec.Struct):
    response_id: str | None
    info: _Info
    request_latency: float | None  # seconds
    time_to_first_token_ms: float | None
    inter_token_latency_ms: float | None


class _Requests(msgspec.Struct, frozen=True):
    successful: list[_Request] = []


class _Benchmark(msgspec.Struct):
    metrics: _Metrics
    requests: _Requests = _Requests()


class _Report(msgspec.Struct):
    benchmarks: list[_Benchmark]


def command(load: Load) -> list[str]:
    return [
        "guidellm",
        "run",
        "--backend",
        f"kind=openai_http,target={load.url},model={load.model}",
        "--tokenizer",
        f"kind=huggingface_auto,model={load.tokenizer}",
        "--data",
        f"kind=synthetic_text,prompt_tokens={load.prompt_tokens},output_tokens={load.output_tokens}"
        + (f",output_tokens_stdev={load.output_spread}" if load.output_spread else ""),
        "--profile",
        f"kind=concurrent,streams={load.concurrency}",
        "--constraint",
        f"kind=max_requests,count={load.requests}",
        "--output",
        f"kind=json,path={_OUT}",
        "--disable-console-interactive",
    ]


def read(folder: Path, _printed: str) -> Counted:
    return parse((folder / _OUT).read_bytes())


def parse(report: bytes) -> Counted:
    metrics = msgspec.json.decode(report, type=_Report).benchmarks[0].metrics
    return Counted(
        requests=int(metrics.prompt_token_count.successful.count),
        prompt_tokens=int(metrics.prompt_token_count.successful.total_sum),
        completion_tokens=int(metrics.output_token_count.successful.total_sum),
        ttft_s=metrics.time_to_first_token_ms.successful.mean / 1000,
        itl_s=metrics.inter_token_latency_ms.successful.mean / 1000,
    )


def account(folder: Path) -> Account:
    return parse_account((folder / _OUT).read_bytes())


def parse_account(report: bytes) -> Account:
    """Its percentiles are a step function, and those of ITL weighted by gaps: neither is read."""
    found = msgspec.json.decode(report, type=_Report).benchmarks[0]
    return Account(
        statistics={
            "ttft": {"mean": found.metrics.time_to_first_token_ms.successful.mean / 1000},
            "itl": {"mean": found.metrics.inter_token_latency_ms.successful.mean / 1000},
            "latency": {"mean": found.metrics.request_latency.successful.mean},
        },
        records=tuple(_record(request) for request in found.requests.successful),
    )


def _record(request: _Request) -> Record:
    ttft_ms, tpot_ms, timings = request.time_to_first_token_ms, request.inter_token_latency_ms, request.info.timings
    last_s = timings.last_token_iteration
    return Record(
        name=request.response_id or "",
        ttft_s=None if ttft_ms is None else ttft_ms / 1000,
        tpot_s=None if tpot_ms is None else tpot_ms / 1000,
        e2e_s=None if last_s is None else last_s - timings.request_start,
        latency_s=request.request_latency,
    )


TOOL = Tool(
    name="guidellm",
    requirement="guidellm==0.8.*",
    package="guidellm",
    command=command,
    read=read,
    account=account,
    environment={"HF_HUB_OFFLINE": "1"},
    definitions="TTFT: request handed to the connection to first content at the client. What it calls ITL is our TPOT: "
    "(last - first) / (tokens - 1) of a request; but its mean and percentiles weigh a request by its gaps, so the mean "
    "is that of our ITL, and the percentiles are of neither. Its TPOT includes TTFT and is not compared. Its request "
    "latency ends with the stream, after usage and [DONE]; E2E is taken of the times in its records. Its percentiles "
    "are a step function: the smallest value with that share at or below it; they are taken of its records here.",
    notes="Asks `GET /health` and `GET /v1/models` before it begins. Takes token counts from the server's usage. "
    "Installs torch, several gigabytes if pip chooses the version.",
)
