"""Which parts does the check have, and how does one that crashes leave the others alone?

Each runs in a process of its own (`bench.gpu.part`) with a time limit of its own: a lost CUDA context, a hang or an
abort in foreign code ends that process and is recorded. What it measured before stands in its file already.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, Protocol

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from bench.gpu.shapes import LLAMA_8B, TINY, Shape
from bench.machine import ROOT
from bench.rows import Row
from runtime import config

_KEPT_CHARS = 60_000


class Rates(Struct, frozen=True, kw_only=True):
    """What the device can do, measured by `bench.gpu.limits`: bytes per second, and operations per second."""

    copy: float  # bytes read and bytes written
    read: float
    matrix: float  # in the type of the model

    @property
    def memory(self) -> float:
        """The higher one: no step beats it, whatever it does with the memory."""
        return max(self.copy, self.read)


class Settings(Struct, frozen=True, kw_only=True):
    """What a part is told."""

    device: str  # cuda:0; cpu to try the check itself
    rates: Rates | None  # None: they are not known, so there are no ratios
    parent_pid: int
    limit_s: float = 60.0  # it is killed after that

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"

    @property
    def shape(self) -> Shape:
        return LLAMA_8B if self.on_gpu else TINY


class Record(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of what a part tells: one of these."""

    row: Row | None = None
    note: str | None = None
    rates: Rates | None = None
    facts: dict[str, str] | None = None  # about the machine


class Tell(Protocol):
    def __call__(
        self,
        *rows: Row,
        note: str | None = None,
        rates: Rates | None = None,
        facts: Mapping[str, str] | None = None,
    ) -> None:
        """Keep this, whatever becomes of the part afterwards."""
        ...


_ALWAYS: Mapping[str, str] = {
    "PYTHONUNBUFFERED": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",  # every model is made here
    "TEARDOWN_CUPTI": "0",  # a profiler that comes back after it was torn down crashes with CUDA graphs, torch says
}

Status = Literal["ok", "failed", "crashed", "out of time", "skipped"]


class Part(Struct, frozen=True, kw_only=True):
    """
    Attributes:
        module: has `run(settings, tell)`.
        limit_s: it is killed after that.
        on_cpu: it can run without a GPU, to try it.
        optional: its failure is recorded and fails nothing.
    """

    name: str
    question: str
    limit_s: float
    module: str
    on_cpu: bool = True
    optional: bool = False


PARTS: tuple[Part, ...] = (
    Part(name="limits", question="what can this device do?", limit_s=60, module="bench.gpu.limits"),
    Part(name="kernels", question="are the kernels right?", limit_s=150, module="bench.gpu.kernels"),
    Part(
        name="exactness",
        question="does a cell answer what transformers answers?",
        limit_s=120,
        module="bench.gpu.exactness",
        on_cpu=False,
    ),
    Part(name="steps", question="how far from their floors are steps?", limit_s=120, module="bench.gpu.steps"),
    Part(name="transfer", question="how fast do pages move?", limit_s=60, module="bench.gpu.transfer"),
    Part(name="killed", question="what does a dead peer cost the survivor?", limit_s=90, module="bench.gpu.killed"),
    Part(name="handoff", question="what does splitting cost?", limit_s=120, module="bench.gpu.handoff"),
    Part(
        name="eval",
        question="split or not, under load?",
        limit_s=150,
        module="bench.gpu.evaluation",
        optional=True,
    ),
    Part(
        name="batching",
        question="how fast is transformers' continuous batching?",
        limit_s=110,
        module="bench.gpu.batching",
        on_cpu=False,
        optional=True,
    ),
    Part(
        name="compiled",
        question="how fast is transformers' compiled decode?",
        limit_s=150,
        module="bench.gpu.compiled",
        on_cpu=False,
        optional=True,
    ),
)


class Outcome(Struct, frozen=True, kw_only=True):
    """What became of a part."""

    part: str
    question: str
    status: Status
    seconds: float
    why: str = ""  # not `ok`: how it ended
    printed: str = ""  # the end of it, with warnings that fail nothing
    rows: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()
    rates: Rates | None = None
    facts: dict[str, str] = {}


def run_part(part: Part, settings: Settings, directory: Path, limit_s: float) -> Outcome:
    """Run it to its end, or to its limit. `directory` keeps its files apart from those of others."""
    settings_file, records, log = (directory / f"{part.name}.{kind}" for kind in ("json", "jsonl", "log"))
    config.write(settings_file, replace(settings, limit_s=limit_s))
    began = time.perf_counter()
    with log.open("wb") as printed:
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.gpu.part", part.module, str(settings_file), str(records)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=_environment(settings),
        )
        try:
            code: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    status, how = verdict(code, limit_s)
    told = read_records(records)
    return Outcome(
        part=part.name,
        question=part.question,
        status=status,
        seconds=round(time.perf_counter() - began, 1),
        why=how,
        printed=log.read_text(errors="replace")[-_KEPT_CHARS:].strip(),
        rows=tuple(record.row for record in told if record.row is not None),
        notes=tuple(record.note for record in told if record.note is not None),
        rates=next((record.rates for record in told if record.rates is not None), None),
        facts={key: value for record in told for key, value in (record.facts or {}).items()},
    )


def not_run(part: Part, status: Status, why: str) -> Outcome:
    return Outcome(part=part.name, question=part.question, status=status, seconds=0.0, why=why)


def verdict(code: int | None, limit_s: float) -> tuple[Status, str]:
    """Of an exit code; None: it was killed at its limit."""
    if code is None:
        return "out of time", f"it did not end within {limit_s:.0f} s"
    if code < 0:
        return "crashed", f"killed by {signal.Signals(-code).name}"
    return ("ok", "") if code == 0 else ("failed", f"exit code {code}")


def read_records(path: Path) -> list[Record]:
    """All whole lines; a part that was killed may have left half of one."""
    lines: Sequence[bytes] = path.read_bytes().split(b"\n")[:-1] if path.is_file() else ()
    return [msgspec.json.decode(line, type=Record) for line in lines]


def _environment(settings: Settings) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    without_gpu = {} if settings.on_gpu else {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    return {**inherited, **without_gpu, **_ALWAYS}


def _end(process: subprocess.Popen[bytes]) -> None:
    """The part and what it started in its own session; the processes of cells die with their parents."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
