"""What do HTTP clients see while a cell loses a worker, drains, or cannot start?"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from coordinator.config import HttpConfig
from engine.fake import fake_tokens
from launch.supervisor import CellFailed
from tests.support.http_cells import assert_api_error, hosted, mock_http
from tests.support.processes import mock_options, processes_of, shared_memory, start_launcher
from tests.support.raw_http import ask, connect, events, parse, read_all, read_until, request

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

TEXT = "/v1/completions"
ENDLESS = {"prompt": [1] * 30, "max_tokens": 3000, "ignore_eos": True, "stream": True}
SOON_S = 15.0


def status_of(port: int, path: str) -> int:
    return ask(port, request(path)).status


def until(port: int, path: str, status: int) -> None:
    deadline = time.monotonic() + SOON_S
    while (found := status_of(port, path)) != status:
        assert time.monotonic() < deadline, f"{path} says {found}, not {status}"
        time.sleep(0.05)


def works(port: int) -> None:
    answer = ask(port, request(TEXT, {"prompt": [7], "max_tokens": 5, "ignore_eos": True}))
    assert answer.status == 200, answer.body
    assert answer.json()["choices"][0]["text"].encode() == bytes(fake_tokens([7], 5))


@pytest.mark.parametrize("victim", ["decode-0", "prefill-0"])
def test_a_killed_worker_ends_its_streams_with_an_error_and_health_recovers(victim: str) -> None:
    with hosted(mock_http(fake_step_s=0.01, fake_token_s=0.0005)) as cell, connect(cell.port) as connection:
        before = cell.pids()
        assert [status_of(cell.port, path) for path in ("/health", "/ready", "/live")] == [200, 200, 200]
        # The prefill worker dies in the middle of a long prompt, the decode worker in the middle of an answer.
        prompt = [1] * (30 if victim == "decode-0" else 2000)
        connection.sendall(request(TEXT, {**ENDLESS, "prompt": prompt, "max_tokens": 1000}))
        if victim == "decode-0":
            read_until(connection, b"data: ", 3)
        else:
            cell.until_in_flight(1)
        os.kill(before[victim], signal.SIGKILL)
        killed_at = time.monotonic()
        rest = read_all(connection)
        assert time.monotonic() - killed_at < 5
        if victim == "decode-0":
            _assert_ends_with_error(rest)
        else:  # nothing has been said yet, so it gets a status
            answer = parse(rest)
            assert answer.status == 503
            assert assert_api_error(503, answer.body)["code"] == "worker_lost"
            assert answer.headers["retry-after"] == "1"
        assert status_of(cell.port, "/live") == 200
        until(cell.port, "/health", 200)
        works(cell.port)
        cell.pages_back()
        after = cell.pids()
        assert after[victim] != before[victim]
        assert {name: pid for name, pid in after.items() if name != victim} == {
            name: pid for name, pid in before.items() if name != victim
        }


def test_health_is_503_while_a_role_has_no_worker() -> None:
    """It is restarted half a second after its death: time enough to see that nobody can decode."""
    with hosted(mock_http()) as cell:
        os.kill(cell.pids()["decode-0"], signal.SIGKILL)
        until(cell.port, "/health", 503)
        answer = ask(cell.port, request("/ready"))
        assert answer.status == 503
        assert "linked" in answer.json()["status"]
        assert status_of(cell.port, "/live") == 200
        works(cell.port)  # it waits for the worker that is on its way
        until(cell.port, "/ready", 200)


def test_a_drain_lets_streams_end_and_turns_new_requests_away() -> None:
    with hosted(mock_http(fake_step_s=0.01)) as cell, connect(cell.port) as connection:
        connection.sendall(request(TEXT, {**ENDLESS, "max_tokens": 300}))
        said = read_until(connection, b"data: ", 3)
        drained = asyncio.run_coroutine_threadsafe(cell.running.supervisor.drain(), cell.loop)
        until(cell.port, "/ready", 503)
        assert [status_of(cell.port, path) for path in ("/live", "/health")] == [200, 200]
        refused = ask(cell.port, request(TEXT, {"prompt": "x", "stream": True}))
        assert refused.status == 503
        assert assert_api_error(503, refused.body)["code"] == "draining"
        assert int(refused.headers["retry-after"]) > 0
        assert not drained.done()
        answer = parse(said + read_all(connection))
        tokens = [json.loads(event)["choices"][0]["text"] for event in events(answer.body)[:-1]]
        assert "".join(tokens).encode() == bytes(fake_tokens([1] * 30, 300))
        assert events(answer.body)[-1] == b"[DONE]"
        drained.result(10)
        assert status_of(cell.port, "/live") == 200


def test_sigterm_of_the_launcher_drains_what_http_clients_wait_for(tmp_path: Path) -> None:
    """And nothing is left: no process, no port, no shared memory, no file."""
    segments = shared_memory()
    port = _free_port()
    launcher = start_launcher("drain", "--mock", "--port", str(port), base=tmp_path)
    try:
        _until_said(launcher, f"http://127.0.0.1:{port}")
        assert status_of(port, "/ready") == 200
        with connect(port) as connection:
            # The mock of the command line makes tokens as fast as it can.
            connection.sendall(request(TEXT, {**ENDLESS, "prompt": [2] * 10, "n": 8, "return_token_ids": True}))
            said = read_until(connection, b"data: ", 3)
            launcher.send_signal(signal.SIGTERM)
            answer = parse(said + read_all(connection))
        assert events(answer.body)[-1] == b"[DONE]"
        counts: dict[int, list[int]] = {}
        for event in events(answer.body)[:-1]:
            choice = json.loads(event)["choices"][0]
            counts.setdefault(choice["index"], []).extend(choice["token_ids"])
        assert set(counts) == set(range(8))
        assert all(tokens == fake_tokens([2] * 10, 3000) for tokens in counts.values())
        assert launcher.wait(SOON_S) == 0
    finally:
        launcher.kill()
        _, printed = launcher.communicate()
    assert "Traceback" not in printed
    assert not processes_of(str(tmp_path))
    assert shared_memory() <= segments
    assert not list(tmp_path.rglob("*drain*"))
    with pytest.raises(ConnectionRefusedError):
        connect(port)


def test_a_taken_port_is_named_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        launcher = start_launcher("taken", "--mock", "--port", str(port), base=tmp_path)
        _, printed = launcher.communicate(timeout=30)
        assert launcher.returncode == 1
        assert f"port {port}" in printed
        assert f"pid {os.getpid()}" in printed
        assert "--port" in printed
        assert "Traceback" not in printed
        # A cell that is not started by the command line finds out in its coordinator.
        with pytest.raises(CellFailed, match="--port"), hosted(mock_options(http=HttpConfig(port=port))):
            pass
    assert not processes_of(str(tmp_path))


def test_stopping_ends_open_streams_with_an_error() -> None:
    """A second Ctrl-C: nobody waits for the end, but everybody is told."""
    with hosted(mock_http(fake_step_s=0.01)) as cell:
        connection = connect(cell.port)
        connection.sendall(request(TEXT, ENDLESS))
        read_until(connection, b"data: ", 3)
        port = cell.port
    with connection:
        _assert_ends_with_error(read_all(connection))
    with pytest.raises(ConnectionRefusedError):
        connect(port)


def _assert_ends_with_error(streamed: bytes) -> None:
    """The rest of a stream, its chunks' frames included."""
    *_, error, done = [line for line in streamed.split(b"\n") if line.startswith(b"data: ")]
    assert done.strip() == b"data: [DONE]"
    assert_api_error(503, error.removeprefix(b"data: "))


def _free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


def _until_said(launcher: subprocess.Popen[str], what: str) -> None:
    """Before it says that it is ready, there is nothing to drain, and SIGTERM ends it at once."""
    assert launcher.stderr is not None
    said = []
    for line in launcher.stderr:
        said.append(line)
        if what in line:
            return
    raise AssertionError(f"never said {what}: {''.join(said)}")
