"""What is left when a process of a cell is killed, and how long do its requests hang?"""

import asyncio
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from engine.fake import fake_tokens
from launch.client import Generation, RequestFailed, StreamingClient
from launch.rundir import client_endpoint
from runtime.params import SamplingParams
from tests.support.processes import (
    Recorder,
    all_pages_back,
    cell,
    mock_options,
    processes_of,
    shared_memory,
    start_launcher,
)

pytestmark = pytest.mark.e2e

PATIENCE_S = 5.0


def endless(client: StreamingClient, prompt: int) -> Generation:
    sampling = SamplingParams(max_tokens=3000, ignore_eos=True)
    return client.generate(prompt_token_ids=[prompt] * 500, sampling=sampling)


async def fails(generation: Generation) -> tuple[str, float]:
    """How a request failed and when."""
    with pytest.raises(RequestFailed) as failure:
        await generation.finish()
    return failure.value.code, time.monotonic()


async def works_again(client: StreamingClient) -> None:
    """The next request is served as soon as the worker is back."""
    done = await client.generate(prompt_token_ids=[7], sampling=SamplingParams(max_tokens=5)).finish()
    assert done.token_ids == fake_tokens([7], 5)


@pytest.mark.parametrize("victim", ["prefill-0", "decode-0"])
@pytest.mark.parametrize("delay_s", [0.0, 0.1, 0.3, 1.0])
def test_a_killed_worker_ends_its_requests_and_is_restarted(victim: str, delay_s: float) -> None:
    """Killed before, during and after prefill and transfer of 4 requests at once."""

    async def run() -> None:
        # 40 MB of KV per prompt and 0.1 s of prefill each: the kill falls into every phase of some request.
        options = mock_options(fake_step_s=0.005, fake_token_s=0.0002, fake_kv_bytes_per_token=80_000, chunk_tokens=64)
        recorder = Recorder()
        async with cell(options, recorder) as running, StreamingClient(running.endpoint) as client:
            before = running.supervisor.pids()
            requests = [endless(client, i) for i in range(4)]
            waiting = [asyncio.create_task(fails(request)) for request in requests]
            await asyncio.sleep(delay_s)
            os.kill(before[victim], signal.SIGKILL)
            killed_at = time.monotonic()
            if victim == "prefill-0":  # what decodes already needs it no more
                await asyncio.sleep(1.0)
                for request in requests:
                    request.cancel()
            outcomes = await asyncio.gather(*waiting, return_exceptions=True)
            for outcome in outcomes:
                if isinstance(outcome, tuple):
                    assert outcome[0] == "worker_lost"
                    assert outcome[1] - killed_at < PATIENCE_S
            if victim == "decode-0" and delay_s:  # else a request may have come so late that the next worker served it
                assert all(isinstance(outcome, tuple) for outcome in outcomes), outcomes
            await works_again(client)
            await all_pages_back(client)
            after = running.supervisor.pids()
            assert after[victim] != before[victim]
            assert {name: pid for name, pid in after.items() if name != victim} == {
                name: pid for name, pid in before.items() if name != victim
            }

    asyncio.run(run())


def test_a_stopped_worker_is_given_up_and_killed() -> None:
    """SIGSTOP: no transport ever reports that; the heartbeat does."""

    async def run() -> None:
        options = mock_options(fake_step_s=0.005, worker_timeout_s=1.5)
        async with cell(options) as running, StreamingClient(running.endpoint) as client:
            pid = running.supervisor.pids()["decode-0"]
            waiting = asyncio.create_task(fails(endless(client, 1)))
            await asyncio.sleep(0.5)
            os.kill(pid, signal.SIGSTOP)
            async with asyncio.timeout(PATIENCE_S):
                assert (await waiting)[0] == "worker_lost"
            await works_again(client)
            assert running.supervisor.pids()["decode-0"] != pid
            await all_pages_back(client)

    asyncio.run(run())


def wait_until(condition: object, within_s: float, what: str) -> None:
    deadline = time.monotonic() + within_s
    while not condition():  # type: ignore[operator]  # a callable
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@pytest.mark.parametrize("victim", ["coordinator", "launcher"])
def test_nothing_survives_the_death_of_coordinator_or_launcher(victim: str, tmp_path: Path) -> None:
    segments = shared_memory()
    base = Path(f"/tmp/kvrelay-kill-{os.getpid()}-{victim}")
    launcher = start_launcher("victim", "--mock", "--port", "0", base=base)
    try:
        cell_dir = base / "kvrelay" / "victim"
        assert launcher.stderr is not None
        for line in launcher.stderr:
            if "ready" in line and "try:" not in line:
                break
        pids = processes_of(str(cell_dir))
        assert len(pids) == 3
        asyncio.run(_stream_a_little(client_endpoint(cell_dir)))
        if victim == "launcher":
            launcher.kill()
        else:
            coordinator = next(pid for pid in pids if b"coordinator" in Path(f"/proc/{pid}/cmdline").read_bytes())
            os.kill(coordinator, signal.SIGKILL)
        wait_until(lambda: not processes_of(str(cell_dir)), PATIENCE_S, "processes remain")
        launcher.wait(PATIENCE_S)
        assert launcher.returncode != 0
        wait_until(lambda: not cell_dir.exists(), PATIENCE_S, "the directory of the cell remains")
        assert shared_memory() <= segments
    finally:
        launcher.kill()
        launcher.communicate()


async def _stream_a_little(endpoint: str) -> None:
    async with StreamingClient(endpoint) as client:
        done = await client.generate(prompt_token_ids=[1] * 100, sampling=SamplingParams(max_tokens=3)).finish()
        assert len(done.token_ids) == 3


def test_the_first_ctrl_c_drains_and_the_second_stops() -> None:
    segments = shared_memory()
    base = Path(f"/tmp/kvrelay-drain-{os.getpid()}")

    async def run(launcher: "subprocess.Popen[str]", cell_dir: Path) -> None:
        async with StreamingClient(client_endpoint(cell_dir)) as client:
            sampling = SamplingParams(max_tokens=3000, ignore_eos=True)
            long = [client.generate(prompt_token_ids=[1] * 10, sampling=sampling) for _ in range(60)]  # seconds of work
            await long[0].__anext__()
            with pytest.raises(RequestFailed):  # one connection keeps its order: the refusal says that all 60 were read
                await client.generate(prompt_token_ids=[]).finish()
            launcher.send_signal(signal.SIGINT)
            await asyncio.sleep(0.3)
            with pytest.raises(RequestFailed, match="draining"):
                await client.generate(prompt_token_ids=[1], sampling=sampling).finish()
            for generation in long:  # the requests in flight and in the queue end well
                assert (await generation.finish()).token_ids == fake_tokens([1] * 10, 3000)

    launcher = start_launcher("drained", "--mock", "--port", "0", base=base)
    try:
        assert launcher.stderr is not None
        for line in launcher.stderr:
            if "ready" in line and "try:" not in line:
                break
        cell_dir = base / "kvrelay" / "drained"
        asyncio.run(run(launcher, cell_dir))
        assert launcher.wait(15) == 0
        assert not processes_of(str(cell_dir))
        assert not cell_dir.exists()
        assert shared_memory() <= segments
    finally:
        launcher.kill()
        launcher.communicate()
