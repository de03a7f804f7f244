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
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from runtime.clock import SystemClock

_WARM_UP_BYTES = (
    64 << 20
)  # more than once round the shared-memory queues, whose pages cost something when first touched
_CONNECT_ATTEMPTS = 30
_CONNECT_PAUSE_S = 0.1
_TIMEOUT_S = 30.0
_LATENCY_FIELD = 1  # of its CSV line: the median one-way time in microseconds


class PerftestFailed(Exception):
    """The program is there but does not work here."""


@dataclass(frozen=True, slots=True)
class Variant:
    """How UCX is set up.

    Attributes:
        options: of UCX, by their names without `UCX_`; all others have UCX's defaults.
        flags: of the program.
    """

    options: Mapping[str, str]
    flags: tuple[str, ...]


def like_ours(options: Mapping[str, str]) -> Variant:
    """As `transport.ucx` does with these options: endpoints with error handling, and event descriptors."""
    return Variant(options, ("-e", "-I"))


def default() -> Variant:
    """What UCX chooses by itself, when the death of a peer need not be survived."""
    return Variant({}, ())


@dataclass(frozen=True, slots=True)
class Perftest:
    program: Path
    libraries: Path | None  # None: where the loader looks anyway

    async def one_way_s(self, nbytes: int, variant: Variant, cores: Sequence[int], repetitions: int) -> float:
        """Median seconds for one tagged message of `nbytes` between host memory of two processes, one at a time.

        Raises:
            PerftestFailed: it ended with an error, or printed what we cannot read.
            TimeoutError: it did not end.
        """
        port = _free_port()
        warm_up = max(1, _WARM_UP_BYTES // nbytes)
        test = ("-t", "tag_lat", "-s", str(nbytes), "-n", str(repetitions), "-w", str(warm_up), "-f", "-v")
        client = ("127.0.0.1", "-q", *test, *variant.flags)
        async with self._running(("-q",), variant, port, cores[:1]):
            for _ in range(_CONNECT_ATTEMPTS):  # until the server listens
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
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("UCX_")}
        libraries = {"LD_LIBRARY_PATH": str(self.libraries)} if self.libraries is not None else {}
        return inherited | libraries | {f"UCX_{name}": value for name, value in variant.options.items()}


async def working(variants: Iterable[Variant], cores: Sequence[int]) -> Perftest | None:
    """The program, or None where it is not installed or, with a word on stderr, does not work."""
    found = find()
    if found is None:
        return None
    try:
        for variant in variants:
            await found.one_way_s(_WARM_UP_BYTES, variant, cores, 1)
    except (PerftestFailed, TimeoutError) as error:
        print(f"ucx_perftest is left out: {error}", file=sys.stderr)
        return None
    return found


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
