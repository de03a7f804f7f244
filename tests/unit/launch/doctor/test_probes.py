"""Do the probes read what kernels, drivers and package metadata really say?"""

import json
import os
import socket
import threading
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from launch import models
from launch.doctor import probe_cells, probe_gpu, probe_software, probe_system
from launch.doctor.examine import Probes
from launch.doctor.facts import GpuPath
from launch.doctor.probe_gpu import CommandFailed
from launch.doctor.probe_model import model
from launch.ports import PortHolder, port_holder
from launch.pull import final_directory
from launch.rundir import RunDir


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


CPUINFO = "processor\t: 0\nmodel name\t: X\n\nprocessor\t: 1\nmodel name\t: X\n"
MEMINFO = "MemTotal: 8000000 kB\nMemAvailable: 6000000 kB\nSwapTotal: 1000 kB\nSwapFree: 400 kB\nHugePages_Total: 0\n"

# --- the kernel ------------------------------------------------------------------------------------------------------


def test_cores_load_and_no_quota(tmp_path: Path) -> None:
    found = probe_system.cpu(write(tmp_path, {"proc/cpuinfo": CPUINFO, "proc/loadavg": "0.50 0.1 0 1/2 3"}), [1, 0])
    assert (found.cores, found.machine_cores, found.quota_cores, found.load_1m) == ((0, 1), 2, None, 0.5)


def test_the_narrowest_quota_of_cgroup_2_counts(tmp_path: Path) -> None:
    files = {
        "proc/cpuinfo": CPUINFO,
        "proc/loadavg": "0 0 0 1/2 3",
        "proc/self/cgroup": "0::/a/b\n",
        "sys/fs/cgroup/a/cpu.max": "150000 100000\n",
        "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
    }
    assert probe_system.cpu(write(tmp_path, files), [0]).quota_cores == 1.5


def test_a_quota_of_cgroup_1(tmp_path: Path) -> None:
    files = {
        "proc/cpuinfo": CPUINFO,
        "proc/loadavg": "0 0 0 1/2 3",
        "proc/self/cgroup": "4:cpu,cpuacct:/docker/x\n1:name=systemd:/\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000\n",  # a container sees its own group as the root
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    }
    assert probe_system.cpu(write(tmp_path, files), [0]).quota_cores == 0.5
    (tmp_path / "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us").write_text("-1\n")
    assert probe_system.cpu(tmp_path, [0]).quota_cores is None


def test_memory_without_a_limit(tmp_path: Path) -> None:
    found = probe_system.memory(write(tmp_path, {"proc/meminfo": MEMINFO}))
    assert (found.total_bytes, found.available_bytes) == (8_192_000_000, 6_144_000_000)
    assert (found.limit_bytes, found.limit_free_bytes, found.swap_used_bytes) == (None, None, 600 * 1024)


def test_a_memory_limit_leaves_file_cache_out_of_what_is_used(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": "3000\n",
        "sys/fs/cgroup/memory.current": "2500\n",
        "sys/fs/cgroup/memory.stat": "anon 500\ninactive_file 1900\n",
    }
    found = probe_system.memory(write(tmp_path, files))
    assert (found.limit_bytes, found.limit_free_bytes) == (3000, 2400)


def test_the_huge_number_of_cgroup_1_is_no_limit(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "4:memory:/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    assert probe_system.memory(write(tmp_path, files)).limit_bytes is None


def test_limits_of_a_machine_without_shared_memory_and_with_rdma(tmp_path: Path) -> None:
    (tmp_path / "sys/class/infiniband/mlx5_0").mkdir(parents=True)
    found = probe_system.limits(tmp_path)
    assert (found.shm_bytes, found.rdma_devices) == (None, ("mlx5_0",))
    assert found.open_files is None or found.open_files > 0


def test_variables_are_chosen_and_secrets_are_not() -> None:
    found = probe_system.environment({"UCX_TLS": "tcp", "HF_TOKEN": "hf_x", "HOME": "/", "OMP_NUM_THREADS": "1"})
    assert [one.name for one in found] == ["OMP_NUM_THREADS", "UCX_TLS"]


# --- GPUs ------------------------------------------------------------------------------------------------------------

KERNEL = {
    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n"
    "GCC version:  gcc version 12.3.0\n",
    "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA H200\nIRQ: 1\n",
}
SMI = "0, NVIDIA H200, 143771, 4, 580.65.06\n1, NVIDIA GB10, [N/A], [N/A], 580.65.06\n"
TOPOLOGY = (
    "\t\x1b[4mGPU0\tGPU1\tGPU2\tNIC0\tCPU Affinity\tNUMA Affinity\x1b[0m\n"
    "GPU0\t X \tNV18\tSYS\tPIX\t0-31\t0\nGPU1\tNV18\t X \tSYS\tPIX\t0-31\t0\nGPU2\tSYS\tSYS\t X \tSYS\t32-63\t1\n"
    "NIC0\tPIX\tPIX\tSYS\t X \t\t\n\nLegend:\n\n  X    = Self\n"
)


def no_program(command: Sequence[str]) -> str:
    raise FileNotFoundError(command[0])


def test_a_machine_without_a_gpu(tmp_path: Path) -> None:
    found = probe_gpu.gpus(tmp_path, no_program)
    assert (found.driver, found.gpus, found.nvidia_smi_error) == (None, (), None)


def test_the_kernel_names_driver_and_gpus_where_nvidia_smi_is_missing_or_fails(tmp_path: Path) -> None:
    write(tmp_path, KERNEL)
    found = probe_gpu.gpus(tmp_path, no_program)
    assert (found.driver, [one.name for one in found.gpus]) == ("580.65.06", ["NVIDIA H200"])

    def fails(command: Sequence[str]) -> str:
        raise CommandFailed("no answer within 8 s")

    assert probe_gpu.gpus(tmp_path, fails).nvidia_smi_error == "no answer within 8 s"


def test_nvidia_smi_and_its_matrix(tmp_path: Path) -> None:
    found = probe_gpu.gpus(tmp_path, lambda command: TOPOLOGY if "topo" in command else SMI)
    assert found.driver == "580.65.06"
    assert [one.memory_bytes for one in found.gpus] == [143771 << 20, None]
    assert found.paths[0] == GpuPath(a=0, b=1, path="NV18")
    assert {(one.a, one.b) for one in found.paths} == {(0, 1), (0, 2), (1, 2)}


def test_a_matrix_that_makes_no_sense_says_nothing() -> None:
    assert probe_gpu.parse_topology("") == ()
    assert probe_gpu.parse_topology("Failed to run topology matrix\n\n") == ()


def test_programs_that_fail_say_why() -> None:
    assert probe_gpu.run(["echo", "hello"]) == "hello\n"
    with pytest.raises(CommandFailed, match="no luck"):
        probe_gpu.run(["sh", "-c", "echo no luck; exit 9"])
    with pytest.raises(FileNotFoundError):
        probe_gpu.run(["kvrelay-has-no-such-program"])


# --- packages --------------------------------------------------------------------------------------------------------


def test_packages_are_compared_with_what_is_asked_for() -> None:
    versions = {"torch": "2.13.0+cpu", "msgspec": "0.18.0", "rich": "15.0.0rc1"}

    def version(name: str) -> str:
        if name not in versions:
            raise PackageNotFoundError(name)
        return versions[name]

    asked = ["torch>=2.11", "msgspec>=0.20", "uvloop", "rich>=14.1", 'pytest>=9; extra == "dev"']
    found = {one.name: one for one in probe_software.packages(asked, version)}
    assert {name: one.matches for name, one in found.items()} == {
        "torch": True,
        "msgspec": False,
        "uvloop": False,
        "rich": True,
    }
    assert found["uvloop"].installed is None


# --- the model -------------------------------------------------------------------------------------------------------


def safetensors(nbytes: int, promised: int) -> bytes:
    header = json.dumps(
        {"__metadata__": {"format": "pt"}, "w": {"dtype": "U8", "shape": [promised], "data_offsets": [0, promised]}}
    ).encode()
    return len(header).to_bytes(8, "little") + header + bytes(nbytes)


@pytest.mark.parametrize(
    ("weights", "damage"),
    [
        (safetensors(10, 10), ()),
        (safetensors(9, 10), ("model.safetensors has another length than its header says",)),
        (b"\xff" * 20, ("model.safetensors has another length than its header says",)),
        (b"abc", ("model.safetensors has another length than its header says",)),
        (b"", ("model.safetensors is empty",)),
    ],
)
def test_a_model_is_whole_when_its_files_have_their_length(
    tmp_path: Path, weights: bytes, damage: tuple[str, ...]
) -> None:
    directory = final_directory(models.SMOLLM2, tmp_path)
    write(directory, {"config.json": "{}", "tokenizer.json": "{}", "tokenizer_config.json": "{}"})
    (directory / "model.safetensors").write_bytes(weights)
    found = model(models.SMOLLM2, tmp_path)
    assert (found.present, found.damage, found.needed_bytes) == (True, damage, 0)
    assert found.cache_bytes == len(weights) + 6


def test_a_cache_that_is_not_there_yet(tmp_path: Path) -> None:
    found = model(models.SMOLLM2, tmp_path / "not" / "yet")
    assert (found.present, found.cache_bytes, found.needed_bytes) == (False, 0, models.SMOLLM2.disk_bytes)
    assert found.free_bytes > 0
    assert not (tmp_path / "not").exists()


# --- cells and ports -------------------------------------------------------------------------------------------------


def test_only_cells_with_a_live_launcher_run(tmp_path: Path) -> None:
    (tmp_path / "dead").mkdir()
    held = RunDir(tmp_path, "alive")
    assert probe_cells.cells(tmp_path).running == ("alive",)
    held.remove()
    assert probe_cells.cells(tmp_path).running == ()
    assert probe_cells.cells(tmp_path / "none").running == ()


def test_a_taken_port_has_a_holder_and_a_neighbour() -> None:
    holder = PortHolder(pid=7, name="x")
    found = probe_cells.port(8000, lambda number: number > 8002, lambda _: holder)
    assert (found.free, found.holder, found.free_port) == (False, holder, 8003)
    assert probe_cells.port(65535, lambda _: False, lambda _: None).free_port is None
    assert probe_cells.port(8000, lambda _: True, lambda _: holder).holder is None


def test_a_real_socket_is_seen_with_its_process() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1]
        assert not probe_cells.port_is_free(number)
        holder = port_holder(number)
        assert holder is not None
        assert holder.pid == os.getpid()
    assert probe_cells.port_is_free(number)


# --- probes that fail ------------------------------------------------------------------------------------------------


def test_a_probe_that_fails_or_hangs_becomes_a_finding() -> None:
    probes = Probes(timeout_s=0.2)
    for_ever = threading.Event()

    def fails() -> int:
        raise ValueError("an odd kernel")

    fine, hanging, failing = probes.start(lambda: 1), probes.start(for_ever.wait), probes.start(fails)
    assert probes.take("cores", fine) == 1
    assert probes.take("memory", failing) is None
    assert probes.take("gpu", hanging) is None
    for_ever.set()
    assert [(one.topic, one.text) for one in probes.failures] == [
        ("memory", "could not be examined: ValueError: an odd kernel"),
        ("gpu", "could not be examined: no answer"),
    ]
