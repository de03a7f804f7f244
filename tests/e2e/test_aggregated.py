"""Do workers that compute prompts and decode serve a whole cell, and short prompts beside prefill workers?

Real processes and the mock engine, whose answers are known. Whether a real model says the same as alone is in
test_exactness.py.
"""

import asyncio
import json
import os
import re
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from coordinator.config import HttpConfig
from engine.fake import fake_tokens
from launch.client import Completion, RequestFailed, StreamingClient
from launch.rundir import client_endpoint
from runtime.params import FinishReason, SamplingParams
from tests.support.processes import all_pages_back, cell, mock_options, start_launcher

pytestmark = pytest.mark.e2e

LENGTHS = [1, 15, 16, 17, 63, 64, 65, 200, 1000]
PROMPTS = [[(7 * i + j) % 256 for j in range(n)] for i, n in enumerate(LENGTHS)]


def params(tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, ignore_eos=True)


async def many(client: StreamingClient) -> list[Completion]:
    """36 requests at once, each with the answer that can be computed by hand."""
    requests = [client.generate(prompt_token_ids=PROMPTS[i % 9], sampling=params(1 + i)) for i in range(36)]
    done = await asyncio.gather(*(request.finish() for request in requests))
    for i, one in enumerate(done):
        assert one.token_ids == fake_tokens(PROMPTS[i % 9], 1 + i)
        assert one.finish_reason is FinishReason.LENGTH
    await all_pages_back(client)
    return done


async def both_serve(client: StreamingClient, killed: int) -> None:
    """Wait until there are two workers again, neither of them the one that was killed."""
    async with asyncio.timeout(20):
        while True:
            pids = {worker.pid for worker in (await client.status()).workers}
            if len(pids) == 2 and killed not in pids:
                return
            await asyncio.sleep(0.1)


def test_every_answer_of_an_aggregated_cell_is_the_computed_one() -> None:
    async def run() -> None:
        options = mock_options(aggregated=2, chunk_tokens=64, mixed_chunk_tokens=24, fake_token_s=0.00002)
        async with cell(options) as running, StreamingClient(running.endpoint) as client:
            assert running.ready.links == ()
            assert sorted(running.supervisor.pids()) == ["coordinator", "decode-0", "decode-1"]
            done = await many(client)
            ledgers = [one.ledger for one in done if one.ledger is not None]
            assert len(ledgers) == len(done)
            assert {ledger.decode_worker for ledger in ledgers} == {"decode-0", "decode-1"}
            for ledger in ledgers:
                assert ledger.prefill_worker == ledger.decode_worker
                assert ledger.prefill is not None
                assert ledger.prefill.chunks >= 1
                assert (ledger.prefill.transfer_bytes, ledger.handoff_gap_s) == (0, 0.0)

    asyncio.run(run())


def test_short_prompts_stay_and_long_ones_are_handed_off() -> None:
    async def run() -> None:
        options = mock_options(local_prefill_tokens=64, chunk_tokens=64)
        async with cell(options) as running, StreamingClient(running.endpoint) as client:
            await many(client)
            for tokens, who in ((64, "decode-0"), (65, "prefill-0")):
                done = await client.generate(prompt_token_ids=[1] * tokens, sampling=params(3)).finish()
                assert done.ledger is not None
                assert (done.ledger.prefill_worker, done.ledger.decode_worker) == (who, "decode-0")
                assert done.token_ids == fake_tokens([1] * tokens, 3)
            await all_pages_back(client)

    asyncio.run(run())


def test_cancelling_at_every_moment_gives_every_page_back() -> None:
    async def run() -> None:
        options = mock_options(
            aggregated=1, fake_step_s=0.003, fake_token_s=0.0001, chunk_tokens=32, decode_kv_tokens=4096
        )
        async with cell(options) as running, StreamingClient(running.endpoint) as client:
            for delay_ms in [0, 1, 2, 5, 10, 20, 40, 60, 80, 120]:
                generation = client.generate(prompt_token_ids=[3] * 400, sampling=params(200))
                await asyncio.sleep(delay_ms / 1000)
                generation.cancel()
                done = await generation.finish()
                assert done.finish_reason is FinishReason.CANCELLED
                assert done.token_ids == fake_tokens([3] * 400, 200)[: len(done.token_ids)]
            storm = [client.generate(prompt_token_ids=[9] * 900, sampling=params(50)) for _ in range(200)]
            await asyncio.sleep(0.3)
            for generation in storm:
                generation.cancel()
            await asyncio.gather(*(generation.finish() for generation in storm))
            await all_pages_back(client)
            done = await client.generate(prompt_token_ids=[5], sampling=params(3)).finish()
            assert done.token_ids == fake_tokens([5], 3)

    asyncio.run(run())


@pytest.mark.parametrize("delay_s", [0.0, 0.2, 1.0])
def test_a_killed_worker_ends_its_own_requests_and_comes_back(delay_s: float) -> None:
    """Killed while it computes prompts, in mixed steps and while it decodes; the other worker goes on."""

    async def run() -> None:
        options = mock_options(aggregated=2, fake_step_s=0.005, fake_token_s=0.0002, chunk_tokens=64)
        async with cell(options) as running, StreamingClient(running.endpoint) as client:
            before = running.supervisor.pids()
            requests = [client.generate(prompt_token_ids=[i] * 500, sampling=params(300)) for i in range(6)]
            waiting = [asyncio.create_task(request.finish()) for request in requests]
            await asyncio.sleep(delay_s)
            os.kill(before["decode-0"], signal.SIGKILL)
            killed_at = time.monotonic()
            outcomes = await asyncio.gather(*waiting, return_exceptions=True)
            lost = [outcome for outcome in outcomes if isinstance(outcome, RequestFailed)]
            assert all(failure.code == "worker_lost" for failure in lost)
            for i, outcome in enumerate(outcomes):
                if isinstance(outcome, Completion):
                    assert outcome.token_ids == fake_tokens([i] * 500, 300)
            assert len(lost) < 6, "one worker serves while the other restarts"
            assert time.monotonic() - killed_at < 30
            await both_serve(client, before["decode-0"])
            assert running.supervisor.pids()["decode-1"] == before["decode-1"]
            await many(client)

    asyncio.run(run())


def test_the_openai_api_of_an_aggregated_cell() -> None:
    def ask(url: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def healthy(url: str) -> bool:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return bool(answer.status == 200)

    async def run() -> None:
        options = mock_options(aggregated=1, http=HttpConfig(port=0), chunk_tokens=64)
        async with cell(options) as running:
            assert running.api is not None
            for prompt in ("hello", "x" * 300):
                body = {"model": "mock", "prompt": prompt, "max_tokens": 12}
                found = await asyncio.to_thread(ask, f"{running.api}/v1/completions", body)
                assert found["choices"][0]["text"] == bytes(fake_tokens(list(prompt.encode()), 12)).decode()
                assert found["usage"]["prompt_tokens"] == len(prompt)
            assert await asyncio.to_thread(healthy, f"{running.api}/health")

    asyncio.run(run())


def test_kvrelay_up_says_what_runs(tmp_path: Path) -> None:
    launcher = start_launcher("agg", "--mock", "--aggregated", "2", "--port", "0", base=tmp_path)
    assert launcher.stderr is not None
    try:
        ready = next(line for line in launcher.stderr if line.startswith("ready"))
        placement = next(launcher.stderr)

        async def once() -> None:
            async with StreamingClient(client_endpoint(tmp_path / "kvrelay" / "agg")) as client:
                done = await client.generate(prompt_token_ids=[1, 2], sampling=params(3)).finish()
                assert done.token_ids == fake_tokens([1, 2], 3)

        asyncio.run(once())
    finally:
        launcher.send_signal(signal.SIGINT)
        launcher.stderr.read()
        launcher.stderr.close()
        assert launcher.wait(20) == 0
    assert re.search(r"mock, aggregated 2, KV pools 32768 tokens, context 4096, OpenAI API at", ready)
    assert re.match(r"placement: decode-0 on core.*, decode-1 on core", placement)


@pytest.mark.parametrize("arguments", [("--prefill", "1"), ("--decode", "1")])
def test_aggregated_workers_beside_others_are_refused(arguments: tuple[str, ...], tmp_path: Path) -> None:
    launcher = start_launcher("agg", "--mock", "--aggregated", "2", *arguments, base=tmp_path)
    _, said = launcher.communicate(timeout=20)
    assert launcher.returncode == 1
    assert "leave --prefill and --decode out" in said
