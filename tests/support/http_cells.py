"""How does a test that blocks (a client library, raw sockets) talk to a real cell?

The cell lives on an event loop of its own, in a thread that outlasts it: one cell serves the tests of a whole module.
"""

import asyncio
import json
import threading
import time
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import psutil

from coordinator.config import HttpConfig, HttpLimits
from launch.cell import RunningCell
from launch.client import StreamingClient
from launch.config import CellOptions
from tests.support.processes import Recorder, all_pages_back, cell, mock_options
from transport.messages.client import CellStatus

MOST_ERROR_BYTES = 4096
_PATIENCE_S = 120.0
_LEAKS = ("Traceback", 'File "', ".py", "/tmp", "/home", "site-packages")
T = TypeVar("T")


@dataclass(frozen=True)
class HostedCell:
    """A cell that runs in another thread."""

    running: RunningCell
    recorder: Recorder
    loop: asyncio.AbstractEventLoop

    @property
    def api(self) -> str:
        assert self.running.api is not None
        return self.running.api

    @property
    def port(self) -> int:
        port = urlsplit(self.api).port
        assert port is not None
        return port

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float = _PATIENCE_S) -> T:
        """The result of `work`, done on the cell's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout_s)

    def status(self) -> CellStatus:
        return self.run(_status(self.running.endpoint))

    def pages_back(self, within_s: float = 10.0) -> CellStatus:
        """Wait until nobody holds a page.

        Raises:
            AssertionError: somebody does, after `within_s`.
        """
        return self.run(_pages_back(self.running.endpoint, within_s))

    def until_in_flight(self, requests: int, within_s: float = 10.0) -> None:
        """Wait until so many requests are in the cell.

        Raises:
            AssertionError: there are not, after `within_s`.
        """
        deadline = time.monotonic() + within_s
        while (found := self.status().in_flight) != requests:
            assert time.monotonic() < deadline, f"{found} requests are in flight, not {requests}"
            time.sleep(0.02)

    def coordinator_bytes(self) -> int:
        """Resident memory of the coordinator."""
        return int(psutil.Process(self.pids()["coordinator"]).memory_info().rss)

    def pids(self) -> dict[str, int]:
        return self.running.supervisor.pids()


@contextmanager
def hosted(options: CellOptions) -> Iterator[HostedCell]:
    """A running cell; what it printed is shown if the block raises."""
    recorder = Recorder()
    known = threading.Event()
    failure: list[BaseException] = []
    found: list[HostedCell] = []
    stop: list[asyncio.Event] = []

    async def live() -> None:
        stop.append(asyncio.Event())
        async with cell(options, recorder) as running:
            found.append(HostedCell(running, recorder, asyncio.get_running_loop()))
            known.set()
            await stop[0].wait()

    def thread() -> None:
        try:
            asyncio.run(live())
        except BaseException as error:  # noqa: BLE001 - raised again in the test's thread
            failure.append(error)
        finally:
            known.set()

    worker = threading.Thread(target=thread, name="cell")
    worker.start()
    try:
        assert known.wait(_PATIENCE_S), f"the cell does not start: {recorder}"
        if failure:
            raise failure[0]
        yield found[0]
    except BaseException:
        print(recorder)  # noqa: T201 - pytest shows it with the failure
        raise
    finally:
        if found and worker.is_alive():
            found[0].loop.call_soon_threadsafe(stop[0].set)
        worker.join(_PATIENCE_S)
    if failure:
        raise failure[0]


def mock_http(
    limits: Mapping[str, float] | None = None, http: Mapping[str, Any] | None = None, **changes: object
) -> CellOptions:
    """A mock cell with an HTTP front on any free port."""
    config = HttpConfig(port=0, limits=HttpLimits(**(limits or {})), **(http or {}))  # type: ignore[arg-type]  # a test's
    return mock_options(http=config, **changes)


def assert_api_error(status: int, body: bytes) -> dict[str, Any]:
    """`body` is a short error in the form of the OpenAI API that tells nothing of the server's insides.

    Returns:
        What stands under `error`.
    """
    assert 400 <= status <= 599, (status, body[:200])
    assert len(body) < MOST_ERROR_BYTES, (status, len(body))
    told = body.decode()
    leaks = [leak for leak in _LEAKS if leak in told]
    assert not leaks, (leaks, told)
    error: dict[str, Any] = json.loads(told)["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    assert all(isinstance(error[key], str) and error[key] for key in ("message", "type", "code")), error
    assert error["param"] is None or isinstance(error["param"], str), error
    return error


async def _status(endpoint: str) -> CellStatus:
    async with StreamingClient(endpoint) as client:
        return await client.status()


async def _pages_back(endpoint: str, within_s: float) -> CellStatus:
    async with StreamingClient(endpoint) as client:
        return await all_pages_back(client, within_s)
