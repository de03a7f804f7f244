"""Does `kvrelay eval` measure a cell of its own, a running one and a URL alike, and leave what it says behind?"""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.evaluation.conduct import Outputs, evaluate
from launch.evaluation.flags import CampaignFlags, LoadFlags, SloFlags, WorkloadFlags
from launch.evaluation.opening import SystemMissing
from launch.evaluation.report.files import load
from launch.evaluation.results import Outcome
from tests.support.asking import asked
from tests.support.http_cells import HostedCell, hosted, mock_http
from tests.support.tree import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

KVRELAY = (sys.executable, "-c", "from launch.cli import main; main()")
REQUESTS, TOKENS = 12, 5
LOAD = LoadFlags(rate=50.0, requests=REQUESTS)
WORKLOAD = WorkloadFlags(prompt_tokens="8-40", output_tokens=str(TOKENS), seed=3)


@pytest.fixture(scope="module")
def cell() -> Iterator[HostedCell]:
    with hosted(mock_http()) as running:
        yield running


def directory(cell: HostedCell) -> Path:
    return Path(cell.running.endpoint.removeprefix("ipc://")).parent


def run(system: str, output: Path, base: Path, **changes: Any) -> Outputs:
    choices = {"workload": WORKLOAD, "load": LOAD} | changes
    return asyncio.run(evaluate(asked(system, output, **choices), base, base))


def check(outputs: Outputs, output: Path) -> None:
    """What every single run leaves behind."""
    study, results = load(output)
    assert study == outputs.study
    assert outputs.failure is None
    (one,) = study.runs
    answers = results[one.run_id]
    assert [answer.index for answer in answers] == list(range(REQUESTS)), "priming is in no result"
    assert {answer.outcome for answer in answers} == {Outcome.COMPLETED}
    assert {len(answer.token_s) for answer in answers} == {TOKENS}
    assert all(8 <= (answer.prompt_tokens or 0) <= 40 for answer in answers)
    assert all(answer.sent_s <= answer.token_s[0] <= answer.token_s[-1] <= answer.end_s for answer in answers)
    assert one.attainments is not None
    assert one.attainments.every.met == REQUESTS
    document = json.loads((output / "study.json").read_text())
    assert (document["completed"], document["num_prompts"], document["request_rate"]) == (REQUESTS, REQUESTS, 50.0)
    assert document["total_output_tokens"] == REQUESTS * TOKENS
    assert document["mean_ttft_ms"] == one.vllm["mean_ttft_ms"]
    assert "ttft" in document["definitions"]


def test_a_running_cell_and_its_url_are_measured_alike(cell: HostedCell, tmp_path: Path) -> None:
    base, name = directory(cell).parent, directory(cell).name
    check(run(f"cell:{name}", tmp_path / "name", base), tmp_path / "name")
    check(run(cell.api, tmp_path / "url", base), tmp_path / "url")
    (zmq,), (http,) = (load(tmp_path / name)[1].values() for name in ("name", "url"))
    assert [one.arrival_s for one in zmq] == pytest.approx([one.arrival_s for one in http], abs=1e-9)
    assert [one.prompt_tokens for one in zmq] == [one.prompt_tokens for one in http]
    assert all(one.ledger is not None for one in zmq), "our own cells tell where the time went"
    cell.pages_back()


def test_prompts_of_a_file_go_to_a_url_as_text(cell: HostedCell, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "abc", "output_tokens": 2}\n{"prompt": "defgh"}\n')
    workload = WorkloadFlags(prompts=file, output_tokens="3")
    outputs = run(cell.api, tmp_path / "out", tmp_path, workload=workload, load=LoadFlags(concurrency=1))
    (answers,) = load(tmp_path / "out")[1].values()
    assert [(one.prompt_tokens, len(one.token_s)) for one in answers] == [(3, 2), (5, 3)]
    assert outputs.study.runs[0].dispatch is None


def test_a_campaign_that_has_used_up_its_file_keeps_what_it_measured(cell: HostedCell, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "abc", "output_tokens": 2}\n' * 3)
    outputs = run(
        cell.api,
        tmp_path / "out",
        tmp_path,
        workload=WorkloadFlags(prompts=file),
        load=LoadFlags(requests=2),
        campaign=CampaignFlags(sweep="50,60"),
    )
    study, _ = load(tmp_path / "out")
    assert len(study.runs) == 1
    assert any(note.startswith("ended early: 2 requests from number 2 on") for note in study.workload)
    assert outputs.study == study
    assert outputs.failure is not None
    assert outputs.failure.startswith("ended early")


def test_a_sweep_of_two_systems_ends_with_a_duel_where_a_load_is_named(cell: HostedCell, tmp_path: Path) -> None:
    outputs = run(
        f"cell:{directory(cell).name}",
        tmp_path / "out",
        directory(cell).parent,
        load=LoadFlags(rate=60.0, requests=3),
        campaign=CampaignFlags(sweep="50", compare=cell.api, pairs=2),
    )
    assert [one.purpose for one in outputs.study.runs] == ["sweep"] * 2 + ["compare"] * 4
    assert len(outputs.study.duels) == 1


def test_two_cells_of_its_own_are_compared(tmp_path: Path) -> None:
    base = Path(f"/tmp/kvrelay-test-{os.getuid()}")
    outputs = run(
        "1P1D",
        tmp_path / "out",
        base,
        campaign=CampaignFlags(compare="aggregated:1", pairs=2),
        load=LoadFlags(rate=50.0, requests=6),
    )
    study, results = load(tmp_path / "out")
    assert study == outputs.study
    assert [system.name for system in study.systems] == ["1P1D", "aggregated 1"]
    assert [one.system for one in study.runs] == ["1P1D", "aggregated 1", "aggregated 1", "1P1D"]
    assert study.duels[0].verdict
    assert sum(map(len, results.values())) == 24
    prompts = [sorted(one.prompt_tokens or 0 for one in answers) for answers in results.values()]
    assert prompts[0] == prompts[1] != prompts[2] == prompts[3], "both get the same requests, the next pair new ones"


def test_what_is_not_there_or_contradicts_itself_is_told_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(SystemMissing, match="kvrelay up"):
        run("cell:nobody", tmp_path / "1", tmp_path)
    with pytest.raises(ValueError, match="--slo-ttft-ms"):
        run("1P1D", tmp_path / "2", tmp_path, campaign=CampaignFlags(goodput=True), slo=SloFlags(), load=LoadFlags())
    with pytest.raises(ValueError, match="--compare"):
        run("1P1D", tmp_path / "3", tmp_path, campaign=CampaignFlags(regions="8x4"), load=LoadFlags())
    with pytest.raises(ValueError, match="one name"):
        run("1P1D", tmp_path / "4", tmp_path, campaign=CampaignFlags(compare="1p1d"))
    with pytest.raises(ValueError, match="--rate"):
        run("1P1D", tmp_path / "5", tmp_path, campaign=CampaignFlags(sweep="1,2"))


def test_the_command_prints_what_it_has_when_it_is_interrupted(cell: HostedCell, tmp_path: Path) -> None:
    """The third request of the trace is an hour away."""
    trace = tmp_path / "trace.jsonl"
    lines = [{"timestamp": at, "input_length": 16, "output_length": 2} for at in (0, 1, 3_600_000)]
    trace.write_text("\n".join(map(json.dumps, lines)))
    output = tmp_path / "out"
    before = answered(cell)
    arguments = ["eval", cell.api, "--mooncake", trace, "--trace-clock", "1", "--json", "--output", output]
    process = subprocess.Popen([*KVRELAY, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    tried_and_primed = 1 + 2
    deadline = time.monotonic() + 60
    while answered(cell) < before + tried_and_primed + 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    document = json.loads(told)
    assert document == json.loads((output / "study.json").read_text())
    assert document["runs"][0]["requests"] == 2
    assert any("stopped by hand after 2 of 3 requests: 0 under way" in note for note in document["workload"])


def answered(cell: HostedCell) -> int:
    """Requests that came to the end that was asked for."""
    with urllib.request.urlopen(f"{cell.api}/metrics", timeout=10) as response:
        found = re.search(r'^kvrelay_requests_total\{outcome="length"\} (\d+)', response.read().decode(), re.MULTILINE)
    return int(found[1]) if found else 0


def test_help_teaches() -> None:
    told = subprocess.run([*KVRELAY, "eval", "--help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for word in ("Examples", "open loop", "cell:NAME", "--slo-ttft-ms", "--goodput", "--concurrency", "--fit"):
        assert word in told, word
