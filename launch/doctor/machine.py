"""Are there cores, memory, limits and ports enough for a cell?

Pure: facts to findings.
"""

import math
from collections.abc import Sequence

from launch.doctor.facts import CellFacts, CpuFacts, Facts, LimitFacts, MemoryFacts, PortFacts
from launch.doctor.finding import Finding, asks_for_shared_memory, error, gigabytes, info, ok, variable, warning
from launch.placement import place

_BUSY = 0.7  # of the cores: less than that leaves two workers their own

_WEIGHT_BYTES = 538_000_000  # of the default model in float32, in each worker
_KV_BYTES_PER_TOKEN = 46_080
_PROCESS_BYTES = (
    450_000_000  # torch, transformers, activations: 390 MB measured in a worker (PSS, prompt of 3,000 tokens)
)
_COORDINATOR_AND_LAUNCHER_BYTES = 200_000_000

_OPEN_FILES = 1024  # every client of the coordinator costs it one
_SWAPPING_BYTES = 256_000_000


def memory_needed(prefill_kv_tokens: int, decode_kv_tokens: int) -> int:
    """What 1P1D takes with the default model in float32: the arithmetic of docs/operations.md#memory."""
    pools = (prefill_kv_tokens + decode_kv_tokens) * _KV_BYTES_PER_TOKEN
    return 2 * (_WEIGHT_BYTES + _PROCESS_BYTES) + pools + _COORDINATOR_AND_LAUNCHER_BYTES


def judge(facts: Facts, needed_bytes: int) -> list[Finding]:
    """`needed_bytes`: what `memory_needed` says of the pools that `kvrelay up` would make."""
    findings: list[Finding] = []
    if facts.cpu is not None:
        findings += _cores(facts.cpu)
    threads = variable(facts, "OMP_NUM_THREADS")
    if threads is not None:
        findings.append(
            warning(
                "cores",
                f"OMP_NUM_THREADS={threads} is set: it decides about threads that kvrelay places by itself",
                "unset OMP_NUM_THREADS",
            )
        )
    if facts.memory is not None:
        findings += _memory(facts.memory, needed_bytes)
    if facts.limits is not None:
        findings += _limits(facts.limits, facts)
    if facts.port is not None:
        findings.append(_port(facts.port, facts.cells))
    if facts.cells is not None and facts.cells.running:
        names = ", ".join(facts.cells.running)
        findings.append(
            info(
                "cells",
                f"running already: {names}; what is measured here shares the cores with them",
                "another cell needs another --name; `kvrelay status --name NAME` shows what one does",
            )
        )
    return findings


def _cores(cpu: CpuFacts) -> list[Finding]:
    placement = place(cpu.cores, 1, 1)
    some = f"{_count(cpu.cores)} of {cpu.machine_cores}" if len(cpu.cores) < cpu.machine_cores else _count(cpu.cores)
    text = f"{some}: 1P1D would run prefill on {_list(placement.prefill[0])}, decode on {_list(placement.decode[0])}"
    findings = []
    if placement.shared:
        findings.append(
            warning(
                "cores",
                f"{text}: both workers share it, so a prompt of one request delays the tokens of another",
                "give kvrelay two cores or more (taskset, docker run --cpus and --cpuset-cpus, the size of the VM)",
            )
        )
    else:
        findings.append(ok("cores", text))
    if cpu.quota_cores is not None and cpu.quota_cores < len(cpu.cores):
        usable = cpu.cores[: max(1, math.floor(cpu.quota_cores))]
        findings.append(
            warning(
                "cores",
                f"a cgroup allows {cpu.quota_cores:g} cores' worth of time on these {len(cpu.cores)}: one thread per "
                "core uses that up early, and then all of them are stopped for the rest of each period",
                f"raise the quota (docker run --cpus), or start on as many cores as it pays for: "
                f"taskset -c {_spans(usable)} kvrelay up",
            )
        )
    if cpu.load_1m >= _BUSY * cpu.machine_cores:
        findings.append(
            warning(
                "load",
                f"load average {cpu.load_1m:.1f} on {cpu.machine_cores} cores in the last minute: others compute here",
                "top shows which; latencies, and the speed of the kv link below, are worse than on a quiet machine",
            )
        )
    return findings


def _memory(memory: MemoryFacts, needed: int) -> list[Finding]:
    limited = memory.limit_bytes is not None and memory.limit_bytes < memory.total_bytes
    total = min(memory.total_bytes, memory.limit_bytes) if memory.limit_bytes is not None else memory.total_bytes
    available = memory.available_bytes
    if memory.limit_free_bytes is not None:
        available = min(available, memory.limit_free_bytes)
    whose = f"of {gigabytes(total)} that a cgroup allows" if limited else f"of {gigabytes(total)}"
    text = f"{gigabytes(available)} free {whose}; the default model with default pools takes about {gigabytes(needed)}"
    smaller = "kvrelay up --dtype bfloat16 --prefill-kv-tokens 4096 --decode-kv-tokens 8192 takes little more than half"
    findings = []
    if total < needed:
        more = "raise the limit (docker run --memory); or: " if limited else ""
        findings.append(error("memory", f"{text}: the kernel would kill a worker", f"{more}{smaller}"))
    elif available < needed:
        findings.append(
            warning(
                "memory", f"{text}: a worker might be killed or swapped", f"end what uses the memory; or: {smaller}"
            )
        )
    else:
        findings.append(ok("memory", text))
    if memory.swap_used_bytes >= _SWAPPING_BYTES:
        text = f"{gigabytes(memory.swap_used_bytes)} of {gigabytes(memory.swap_total_bytes)} swap is in use"
        if available < needed:
            findings.append(
                warning(
                    "swap",
                    f"{text} while memory is short: a worker that swaps is silent for seconds and is taken for dead",
                    "free memory, or turn swap off (swapoff -a)",
                )
            )
        else:
            findings.append(info("swap", f"{text}; memory is free now, so it was used by something earlier"))
    return findings


def _limits(limits: LimitFacts, facts: Facts) -> list[Finding]:
    findings = []
    if limits.open_files is not None and limits.open_files < _OPEN_FILES:
        findings.append(
            warning(
                "limits",
                f"{limits.open_files} open files per process: the coordinator needs one per client",
                "ulimit -n 4096",
            )
        )
    cores = 1 if facts.cpu is None else len(facts.cpu.cores)
    threads = 64 + 4 * cores  # four processes, each with a handful and torch's
    if limits.processes is not None and limits.processes < threads:
        findings.append(
            warning(
                "limits",
                f"{limits.processes} processes and threads for this user: a cell starts about {threads}",
                f"ulimit -u {max(4096, threads)}",
            )
        )
    if limits.rdma_devices and limits.locked_memory_bytes is not None:
        findings.append(
            warning(
                "limits",
                f"{gigabytes(limits.locked_memory_bytes)} of memory may be locked, and there is RDMA hardware "
                f"({', '.join(limits.rdma_devices)}): it can only move memory that is locked",
                "ulimit -l unlimited (docker run --ulimit memlock=-1)",
            )
        )
    if asks_for_shared_memory(facts.environment) and (limits.shm_free_bytes or 0) < _SWAPPING_BYTES:
        room = (
            "there is no /dev/shm"
            if limits.shm_bytes is None
            else f"/dev/shm has {gigabytes(limits.shm_free_bytes or 0)} free"
        )
        findings.append(
            warning(
                "shared memory",
                f"{room}, and UCX_TLS asks for transports that may need more",
                "docker run --shm-size 1g, or unset UCX_TLS: kvrelay itself keeps nothing there",
            )
        )
    if not findings:
        files = "any number of" if limits.open_files is None else f"{limits.open_files:,}"
        shm = "no /dev/shm" if limits.shm_bytes is None else f"{gigabytes(limits.shm_free_bytes or 0)} of shared memory"
        findings.append(ok("limits", f"{files} open files, {shm} (which kvrelay does not use)"))
    return findings


def _port(port: PortFacts, cells: CellFacts | None) -> Finding:
    if port.free:
        return ok("port", f"{port.port} on 127.0.0.1 is free for HTTP")
    holder = "a process of another user" if port.holder is None else f"{port.holder.name} (pid {port.holder.pid})"
    ours = " A cell is running: it may be its own." if cells is not None and cells.running else ""
    other = "PORT" if port.free_port is None else port.free_port
    return warning("port", f"{port.port} on 127.0.0.1 is held by {holder}.{ours}", f"kvrelay up --port {other}")


def _count(cores: Sequence[int]) -> str:
    return "1 core" if len(cores) == 1 else f"{len(cores)} cores"


def _list(cores: Sequence[int]) -> str:
    return f"core {cores[0]}" if len(cores) == 1 else f"cores {_spans(cores)}"


def _spans(cores: Sequence[int]) -> str:
    """0-3,8: as taskset takes it."""
    spans: list[list[int]] = []
    for core in cores:
        if spans and core == spans[-1][-1] + 1:
            spans[-1] = [spans[-1][0], core]
        else:
            spans.append([core])
    return ",".join("-".join(map(str, span)) for span in spans)
