"""How fast is UCX itself between two processes?

Runs `ucx_perftest`, which is part of UCX: two C programs that busily poll, without Python, a protocol or an event loop.
It ships in the wheel that UCXX brings; otherwise the one on PATH is taken.
"""

import asyncio
import contextlib
import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from runtime.clock import SystemClock

_WARM_UP = 3
_CONNECT_ATTEMPTS = 50
_CONNECT_PAUSE_S = 0.1
_TIMEOUT_S = 30.0
_LATENCY_FIELD = 1  # of its CSV line: the median one-way time in microseconds


class PerftestFailed(Exception):
    """It ended with an error or printed what we cannot read."""


@dataclass(frozen=True, slots=True)
class Variant:
    """How UCX is set up: environment variables, and flags of the program."""

    environment: Mapping[str, str]
    flags: tuple[str, ...]


LIKE_OURS = Variant({"UCX_MM_ERROR_HANDLING": "y", "UCX_RNDV_THRESH": "8192"}, ("-e", "-I"))
"""What `transport.ucx` asks of UCX: endpoints with error handling that keep shared memory, and event descriptors."""

UCX_DEFAULT = Variant({}, ())
"""What UCX chooses when a peer's death need not be survived."""


@dataclass(frozen=True, slots=True)
class Perftest:
    program: Path
    libraries: Path | None  # None: where the loader looks anyway

    async def one_way_s(self, nbytes: int, variant: Variant, cores: Sequence[int], repetitions: int) -> float:
        """Median seconds for one tagged message of `nbytes` between host memory of two processes, one at a time.

        Raises:
            PerftestFailed: see there.
        """
        port = _free_port()
        test = ("-t", "tag_lat", "-s", str(nbytes), "-n", str(repetitions), "-w", str(_WARM_UP), "-f", "-v")
        async with self._running(("-q",), variant, port, cores[:1]):
            for _ in range(_CONNECT_ATTEMPTS):  # until the server listens
                client = ("127.0.0.1", "-q", *test, *variant.flags)
                async with self._running(client, variant, port, cores[-1:]) as process, asyncio.timeout(_TIMEOUT_S):
                    output, _ = await process.communicate()
                if process.returncode == 0:
                    return _latency_s(output.decode())
                await SystemClock().sleep(_CONNECT_PAUSE_S)
        raise PerftestFailed(f"exit code {process.returncode}: {output.decode().strip()}")

    @contextlib.asynccontextmanager
    async def _running(
        self, arguments: Sequence[str], variant: Variant, port: int, cores: Sequence[int]
    ) -> AsyncIterator[asyncio.subprocess.Process]:
        affinity = [f"-c{core}" for core in cores]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench.tether", str(os.getpid()), str(self.program)),
            *(*arguments, *affinity, "-p", str(port)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            env=self._environment(variant),
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    def _environment(self, variant: Variant) -> dict[str, str]:
        """Ours, with the UCX options that `transport.ucx` passes on, and no others but those of the variant."""
        kept = {n: v for n, v in os.environ.items() if not n.startswith("UCX_") or n in ("UCX_TLS", "UCX_NET_DEVICES")}
        libraries = {"LD_LIBRARY_PATH": str(self.libraries)} if self.libraries is not None else {}
        return kept | libraries | dict(variant.environment)


def find() -> Perftest | None:
    """The program, or None where it is not installed."""
    wheel = find_spec("libucx")
    if wheel is not None and wheel.origin is not None:
        home = Path(wheel.origin).parent
        program = home / "bin" / "ucx_perftest"
        if os.access(program, os.X_OK):
            return Perftest(program, home / "lib")
    on_path = shutil.which("ucx_perftest")
    return Perftest(Path(on_path), None) if on_path else None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _latency_s(output: str) -> float:
    try:
        return float(output.strip().splitlines()[-1].split(",")[_LATENCY_FIELD]) / 1e6
    except (IndexError, ValueError) as error:
        raise PerftestFailed(f"it printed {output!r}") from error
