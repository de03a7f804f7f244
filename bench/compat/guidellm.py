"""How is guidellm run against a cell, and where does it write its numbers?

It asks GET /health and GET /v1/models first, sends `ignore_eos`, `max_completion_tokens` and continuous usage, and
takes token counts from the server's usage.
"""

from pathlib import Path

import msgspec

from bench.compat.tool import Counted, Load, Tool

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


class _Benchmark(msgspec.Struct):
    metrics: _Metrics


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
        f"kind=synthetic_text,prompt_tokens={load.prompt_tokens},output_tokens={load.output_tokens}",
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


TOOL = Tool(
    name="guidellm",
    requirement="guidellm==0.8.*",
    package="guidellm",
    command=command,
    read=read,
    environment={"HF_HUB_OFFLINE": "1"},
    definitions="TTFT: request sent to first content at the client. ITL: (last - first) / (tokens - 1) of a request, "
    "in the mean weighted by its gaps. Its TPOT includes TTFT and is not compared.",
    notes="Asks `GET /health` and `GET /v1/models` before it begins. Takes token counts from the server's usage. "
    "Installs torch, several gigabytes if pip chooses the version.",
)
