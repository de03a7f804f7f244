"""The samples are what guidellm 0.8.1 and aiperf 0.13.0 wrote, shortened; both are of six requests."""

import shlex
from pathlib import Path

import pytest

from bench.compat import aiperf, guidellm, langchain, report, server
from bench.compat.__main__ import TOOLS
from bench.compat.relaying import Added
from bench.compat.runs import Relaying, Run
from bench.compat.tool import Counted, Load, agree
from tests.unit.bench.test_report import ENVIRONMENT

SAMPLES = Path(__file__).with_name("samples")
LOAD = Load("http://127.0.0.1:8000", "model", "folder", concurrency=4, requests=8, prompt_tokens=64, output_tokens=16)
PRINTED = """INFO something else
call: {"name": "invoke", "ok": true, "outcome": "'Paris'", "requests": 1, "prompt_tokens": 37, "completion_tokens": 8}
call: {"name": "batch", "ok": true, "outcome": "a | b", "requests": 2, "prompt_tokens": 70, "completion_tokens": 9}
call: {"name": "tools", "ok": false, "outcome": "X: no", "requests": 0, "prompt_tokens": 0, "completion_tokens": 0}
"""
METRICS = """# TYPE kvrelay_requests_total counter
kvrelay_requests_total{{outcome="stop"}} {stop}
kvrelay_requests_total{{outcome="length"}} 3.0
kvrelay_requests_total{{outcome="cancelled"}} {cancelled}
# TYPE kvrelay_prompt_tokens_total counter
kvrelay_prompt_tokens_total {prompt}
# TYPE kvrelay_generated_tokens_total counter
kvrelay_generated_tokens_total 10.0
# TYPE kvrelay_time_to_first_token_seconds histogram
kvrelay_time_to_first_token_seconds_bucket{{le="+Inf"}} {stop}
kvrelay_time_to_first_token_seconds_count {stop}
kvrelay_time_to_first_token_seconds_sum {ttft}
# TYPE kvrelay_inter_token_latency_seconds histogram
kvrelay_inter_token_latency_seconds_bucket{{le="+Inf"}} 0.0
kvrelay_inter_token_latency_seconds_count 0.0
kvrelay_inter_token_latency_seconds_sum 0.0
# TYPE kvrelay_time_per_output_token_seconds histogram
kvrelay_time_per_output_token_seconds_bucket{{le="+Inf"}} {stop}
kvrelay_time_per_output_token_seconds_count {stop}
kvrelay_time_per_output_token_seconds_sum {ttft}
"""


def test_what_guidellm_writes() -> None:
    counted = guidellm.parse((SAMPLES / "guidellm.json").read_bytes())
    assert (counted.requests, counted.prompt_tokens, counted.completion_tokens) == (6, 564, 101)
    assert counted.ttft_s == pytest.approx(0.963024, abs=1e-6)
    assert counted.itl_s == pytest.approx(0.189064, abs=1e-6)


def test_what_aiperf_writes() -> None:
    counted = aiperf.parse((SAMPLES / "aiperf.json").read_bytes())
    assert (counted.requests, counted.prompt_tokens, counted.completion_tokens) == (6, 564, 110)
    assert counted.ttft_s == pytest.approx(1.184396, abs=1e-6)
    assert counted.itl_s == pytest.approx(0.194888, abs=1e-6)
    assert counted.tpot_s == pytest.approx(0.196998, abs=1e-6)


def test_what_the_langchain_script_prints() -> None:
    counted = langchain.parse(PRINTED)
    assert (counted.requests, counted.prompt_tokens, counted.completion_tokens) == (3, 107, 17)
    assert [(call.name, call.ok) for call in counted.calls] == [("invoke", True), ("batch", True), ("tools", False)]


def test_the_server_is_read_as_a_difference() -> None:
    before = server.parse(METRICS.format(stop=1, cancelled=0, prompt=10, ttft=0.5))
    after = server.parse(METRICS.format(stop=5, cancelled=7, prompt=110, ttft=2.5))
    counted = server.counted(before, after)
    assert counted == Counted(requests=4, prompt_tokens=100, completion_tokens=0, ttft_s=0.5, tpot_s=0.5)


def test_times_agree_within_a_share_or_an_amount() -> None:
    assert agree(0.0119, 0.01)
    assert not agree(0.0121, 0.01)
    assert agree(1.019, 1.0)
    assert not agree(0.979, 1.0)
    assert agree(None, 1.0) is None


@pytest.mark.parametrize("name", TOOLS)
def test_a_command_names_the_server_and_the_model(name: str) -> None:
    line = shlex.join({str(key): tool for key, tool in TOOLS.items()}[name].command(LOAD))
    assert LOAD.url in line
    assert LOAD.model in line


def test_the_page_shows_what_does_not_agree() -> None:
    def run(tokens: int, ttft_s: float) -> Run:
        return Run(
            tool="guidellm",
            version="0.8.1",
            concurrency=1,
            output_spread=0,
            load_average=0.1,
            command="guidellm run",
            reported=Counted(requests=4, prompt_tokens=376, completion_tokens=tokens, ttft_s=ttft_s, itl_s=0.1),
            server=Counted(requests=4, prompt_tokens=376, completion_tokens=64, ttft_s=0.5, itl_s=0.1),
            agreement=None,
            relaying=Relaying(10, 3e-5, 1e-4, 2e-4),
        )

    tools = {"guidellm": guidellm.TOOL}
    added = Added(rounds=10, first_event=(1e-4, 2e-4, 3e-4), whole=(1e-4, 2e-4, 3e-4))
    assert "**no**" not in report.page([run(64, 0.501)], tools, ENVIRONMENT, added)
    assert "| 65, 64 | **no** |" in report.page([run(65, 0.5)], tools, ENVIRONMENT, added)
    assert "| +20.00 ms (+4.0%) | **no** |" in report.page([run(64, 0.52)], tools, ENVIRONMENT, added)
