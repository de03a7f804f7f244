"""How are the facts of this machine gathered, whatever fails or hangs?

Each probe runs on a thread of its own, because a dead network disk or driver stops whoever asks it, for ever. Threads
are daemons: one that never returns does not keep the command from ending. What is measured comes last and alone.
"""

import asyncio
import os
import platform
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from coordinator.config import DEFAULT_HTTP_PORT
from launch import models
from launch.config import CellOptions
from launch.doctor import probe_cells, probe_gpu, probe_model, probe_software, probe_system
from launch.doctor.facts import Facts
from launch.doctor.finding import Finding, warning
from launch.doctor.judge import in_order, judge
from launch.doctor.machine import memory_needed
from launch.ports import port_holder
from launch.rundir import base_dir

_PROBES_TIMEOUT_S = 17.0  # for all together: nvidia-smi is asked twice, and is slow without its persistence daemon
_CELL_TIMEOUT_S = 20.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Examination:
    facts: Facts
    findings: tuple[Finding, ...]


class Probes:
    """Runs probes beside each other; one that fails or hangs becomes a finding."""

    def __init__(self, timeout_s: float) -> None:
        self._deadline = time.monotonic() + timeout_s
        self.failures: list[Finding] = []

    def start(self, probe: Callable[[], T]) -> "Future[T]":
        future: Future[T] = Future()

        def work() -> None:
            try:
                future.set_result(probe())
            except BaseException as error:  # noqa: BLE001 - whoever takes the result decides
                future.set_exception(error)

        threading.Thread(target=work, daemon=True, name="probe").start()
        return future

    def take(self, topic: str, future: "Future[T]") -> T | None:
        try:
            return future.result(max(0.0, self._deadline - time.monotonic()))
        except TimeoutError:
            reason = "no answer"
        except Exception as error:  # noqa: BLE001 - a machine is odd in more ways than we could list
            reason = f"{type(error).__name__}: {error}"
        text = f"could not be examined: {reason}"
        self.failures.append(warning(topic, text, "look at it by hand; the rest of this report does not depend on it"))
        return None


def examine(environ: Mapping[str, str], home: Path, root: Path = Path("/")) -> Examination:
    """Blocks for a few seconds; starts a cell, so it has to run on the main thread."""
    base = base_dir(environ)
    cache = models.default_cache_dir(environ, home)
    system = platform.uname()
    probes = Probes(_PROBES_TIMEOUT_S)

    cpu = probes.start(lambda: probe_system.cpu(root, list(os.sched_getaffinity(0))))
    memory = probes.start(lambda: probe_system.memory(root))
    limits = probes.start(lambda: probe_system.limits(root))
    gpu = probes.start(lambda: probe_gpu.gpus(root, probe_gpu.run))
    port = probes.start(lambda: probe_cells.port(DEFAULT_HTTP_PORT, probe_cells.port_is_free, port_holder))
    cells = probes.start(lambda: probe_cells.cells(base))
    software = probes.start(
        lambda: probe_software.software(system.system, f"{system.system} {system.release} ({system.machine})")
    )
    model = probes.start(lambda: probe_model.model(models.SMOLLM2, cache))
    facts = Facts(
        cpu=probes.take("cores", cpu),
        memory=probes.take("memory", memory),
        limits=probes.take("limits", limits),
        gpu=probes.take("gpu", gpu),
        port=probes.take("port", port),
        cells=probes.take("cells", cells),
        software=probes.take("packages", software),
        model=probes.take("model", model),
        environment=probe_system.environment(environ),
        link=asyncio.run(probe_cells.link(base, _CELL_TIMEOUT_S)),  # last: everybody else is quiet then
    )
    defaults = CellOptions(model_dir=None, model_name=models.DEFAULT_MODEL)
    needed = memory_needed(defaults.prefill_kv_tokens, defaults.decode_kv_tokens)
    return Examination(facts, in_order([*judge(facts, needed), *probes.failures]))
