"""Does each kind of machine get the findings it deserves, and none that it does not?"""

import pytest
from msgspec.structs import replace

from launch.doctor.facts import CellFacts, Facts, GpuFacts, GpuPath, LinkFacts, Package, PortFacts
from launch.doctor.finding import Finding, Level, asks_for_shared_memory
from launch.doctor.judge import in_order, judge, works
from launch.doctor.machine import memory_needed
from launch.ports import PortHolder
from tests.support.machines import (
    CPU,
    GOOD,
    GPU,
    H200,
    LIMITS,
    LINK,
    MEMORY,
    MODEL,
    SOFTWARE,
    TORCH,
    good_but,
    variables,
)

NEEDED = memory_needed(8192, 16384)


def bad(facts: Facts) -> list[Finding]:
    return [one for one in judge(facts, NEEDED) if one.level in (Level.WARNING, Level.ERROR)]


def only(facts: Facts) -> Finding:
    """The one thing that is wrong with a machine."""
    found = bad(facts)
    assert len(found) == 1, found
    assert found[0].advice, "a problem without advice helps nobody"
    return found[0]


def about(facts: Facts, topic: str) -> list[Finding]:
    return [one for one in judge(facts, NEEDED) if one.topic == topic]


# --- good machines ---------------------------------------------------------------------------------------------------


def test_a_good_machine_without_a_gpu_has_no_problem() -> None:
    assert bad(GOOD) == []
    assert works(judge(GOOD, NEEDED))
    assert [one.level for one in about(GOOD, "gpu")] == [Level.INFO]


def test_a_good_machine_with_a_gpu_has_no_problem() -> None:
    assert bad(good_but(gpu=GPU)) == []
    assert "H200 with 150.0 GB" in about(good_but(gpu=GPU), "gpu")[0].text


def test_nothing_known_is_nothing_said() -> None:
    assert judge(Facts(), NEEDED) == ()


def test_the_default_model_with_default_pools_fits_the_4_gb_that_the_readme_asks_for() -> None:
    assert 3_000_000_000 < NEEDED < 4_000_000_000


def test_topics_stand_in_one_order_and_unknown_ones_last() -> None:
    found = [Finding(Level.OK, topic, "") for topic in ("comet", "port", "python", "memory")]
    assert [one.topic for one in in_order(found)] == ["python", "memory", "port", "comet"]


# --- cores and memory ------------------------------------------------------------------------------------------------


def test_placement_is_shown() -> None:
    assert "prefill on cores 0-1, decode on cores 2-3" in about(GOOD, "cores")[0].text


def test_one_core_is_slow_and_works() -> None:
    found = only(good_but(cpu=replace(CPU, cores=(3,))))
    assert (found.level, found.topic) == (Level.WARNING, "cores")
    assert "1 core of 4" in found.text


def test_a_quota_below_the_cores_names_the_cores_that_it_pays_for() -> None:
    found = only(good_but(cpu=replace(CPU, cores=(0, 1, 2, 5), quota_cores=2.5)))
    assert "2.5 cores" in found.text
    assert "taskset -c 0-1 kvrelay up" in str(found.advice)
    assert not bad(good_but(cpu=replace(CPU, quota_cores=4.0)))


def test_a_quota_below_one_core_still_names_a_core() -> None:
    assert "taskset -c 0 kvrelay" in str(only(good_but(cpu=replace(CPU, quota_cores=0.5))).advice)


def test_a_busy_machine() -> None:
    assert only(good_but(cpu=replace(CPU, load_1m=3.5))).topic == "load"


def test_too_little_memory_is_an_error() -> None:
    facts = good_but(memory=replace(MEMORY, total_bytes=2_000_000_000, available_bytes=1_900_000_000))
    assert only(facts).level is Level.ERROR
    assert not works(judge(facts, NEEDED))


def test_memory_that_others_use_is_a_warning() -> None:
    found = only(good_but(memory=replace(MEMORY, available_bytes=1_000_000_000)))
    assert (found.level, found.topic) == (Level.WARNING, "memory")


def test_a_cgroup_limit_counts_as_the_memory_of_the_machine() -> None:
    found = only(good_but(memory=replace(MEMORY, limit_bytes=2_000_000_000, limit_free_bytes=1_500_000_000)))
    assert found.level is Level.ERROR
    assert "1.5 GB free of 2.0 GB that a cgroup allows" in found.text
    assert "docker run --memory" in str(found.advice)


def test_a_full_cgroup_is_a_warning() -> None:
    found = only(good_but(memory=replace(MEMORY, limit_bytes=8_000_000_000, limit_free_bytes=100_000_000)))
    assert found.level is Level.WARNING
    assert "100 MB free" in found.text


def test_swap_is_a_problem_only_while_memory_is_short() -> None:
    swapped = replace(MEMORY, swap_total_bytes=4_000_000_000, swap_used_bytes=1_000_000_000)
    assert not bad(good_but(memory=swapped))
    assert [one.level for one in about(good_but(memory=swapped), "swap")] == [Level.INFO]
    short = replace(swapped, available_bytes=500_000_000)
    assert {one.topic for one in bad(good_but(memory=short))} == {"memory", "swap"}


def test_omp_num_threads() -> None:
    assert "OMP_NUM_THREADS=1" in only(good_but(environment=variables(OMP_NUM_THREADS="1"))).text


# --- limits, ports, cells --------------------------------------------------------------------------------------------


def test_few_open_files_and_few_processes() -> None:
    assert "256 open files" in only(good_but(limits=replace(LIMITS, open_files=256))).text
    assert "30 processes" in only(good_but(limits=replace(LIMITS, processes=30))).text


def test_locked_memory_matters_where_rdma_is() -> None:
    assert not bad(good_but(limits=replace(LIMITS, locked_memory_bytes=64_000)))
    assert "mlx5_0" in only(good_but(limits=replace(LIMITS, locked_memory_bytes=64_000, rdma_devices=("mlx5_0",)))).text


def test_a_tiny_dev_shm_matters_where_ucx_is_told_to_use_it() -> None:
    tiny = replace(LIMITS, shm_bytes=67_108_864, shm_free_bytes=67_108_864)
    assert not bad(good_but(limits=tiny)), "kvrelay keeps nothing there"
    told = variables(UCX_TLS="tcp,sm", UCX_NET_DEVICES="lo")
    assert [one.topic for one in bad(good_but(limits=tiny, environment=told))] == ["shared memory", "ucx"]
    assert [one.topic for one in bad(good_but(environment=told))] == ["ucx"]


def test_a_taken_port_names_who_has_it_and_what_to_type() -> None:
    holder = PortHolder(pid=4711, name="nginx")
    found = only(good_but(port=PortFacts(port=8000, free=False, holder=holder, free_port=8003)))
    assert found.level is Level.WARNING
    assert "nginx (pid 4711)" in found.text
    assert found.advice == "kvrelay up --port 8003"


def test_a_port_of_somebody_else() -> None:
    assert "another user" in only(good_but(port=PortFacts(port=8000, free=False))).text


def test_running_cells_are_named() -> None:
    facts = good_but(cells=CellFacts(directory="/x", running=("default", "second")))
    assert not bad(facts)
    assert "default, second" in about(facts, "cells")[0].text


# --- GPUs ------------------------------------------------------------------------------------------------------------


def test_a_gpu_with_a_torch_for_the_cpu() -> None:
    software = replace(SOFTWARE, packages=(replace(TORCH, installed="2.13.0+cpu"),))
    assert "2.13.0+cpu is built for the CPU only" in only(good_but(gpu=GPU, software=software)).text
    assert not bad(good_but(software=software)), "without a GPU it is the right one"


@pytest.mark.parametrize("name", ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
def test_expandable_segments_keep_gpus_from_serving(name: str) -> None:
    environment = variables(**{name: "max_split_size_mb:64, Expandable_Segments:True"})
    found = only(good_but(gpu=GPU, environment=environment))
    assert (found.level, found.advice) == (Level.ERROR, f"unset {name}")
    assert not bad(good_but(environment=environment)), "nobody allocates CUDA memory there"
    assert not bad(good_but(gpu=GPU, environment=variables(**{name: "expandable_segments:False"})))


def test_an_old_driver() -> None:
    assert "550.54" in only(good_but(gpu=replace(GPU, driver="550.54.14"))).text


def test_a_driver_without_a_gpu_is_a_container_without_its_flag() -> None:
    assert "--gpus all" in str(only(good_but(gpu=GpuFacts(driver="580.65.06"))).advice)


def test_an_nvidia_smi_that_fails() -> None:
    found = only(good_but(gpu=replace(GPU, nvidia_smi_error="Driver/library version mismatch")))
    assert "mismatch" in found.text


def test_hidden_and_chosen_gpus() -> None:
    assert "hides every GPU" in only(good_but(gpu=GPU, environment=variables(CUDA_VISIBLE_DEVICES=""))).text
    assert not bad(good_but(gpu=GPU, environment=variables(CUDA_VISIBLE_DEVICES="0")))
    assert not bad(good_but(environment=variables(CUDA_VISIBLE_DEVICES="")))


@pytest.mark.parametrize(("path", "level"), [("NV18", Level.OK), ("PIX", Level.INFO), ("SYS", Level.WARNING)])
def test_how_gpus_reach_each_other(path: str, level: Level) -> None:
    two = replace(GPU, gpus=(H200, replace(H200, index=1)), paths=(GpuPath(a=0, b=1, path=path),))
    assert [one.level for one in about(good_but(gpu=two), "gpu links")] == [level]
    assert "2 x NVIDIA H200" in about(good_but(gpu=two), "gpu")[0].text


# --- the link --------------------------------------------------------------------------------------------------------


def test_a_good_link_is_compared_with_a_memory_copy() -> None:
    assert "1.50 GB/s, 0.10 of one memory copy" in about(GOOD, "kv link")[0].text


def test_a_slow_link_is_explained_by_what_is_known() -> None:
    slow = replace(LINK, gigabytes_per_s=0.1, slow=True)
    assert "run it again" in str(only(good_but(link=slow)).advice)
    busy = bad(good_but(link=slow, cpu=replace(CPU, load_1m=9.0)))
    assert "other programs use the cores" in str(busy[-1].advice)
    chosen = bad(good_but(link=slow, environment=variables(UCX_NET_DEVICES="lo")))
    assert "UCX_NET_DEVICES=lo chose the transport tcp" in str(chosen[-1].advice)


def test_a_cell_that_does_not_start_is_an_error_with_its_last_lines() -> None:
    facts = good_but(link=LinkFacts(error="decode-0 ended", last_lines=("Traceback", "no such device")))
    found = only(facts)
    assert found.level is Level.ERROR
    assert found.text.endswith("Traceback\nno such device")


def test_a_directory_that_cannot_hold_sockets() -> None:
    found = only(good_but(link=LinkFacts(error="it is too long", unusable_directory="/run/user/0/x")))
    assert found.level is Level.ERROR
    assert "XDG_RUNTIME_DIR" in str(found.advice)


def test_variables_of_ucx() -> None:
    assert "authenticates" in only(good_but(environment=variables(UCX_TLS="tcp"))).text
    assert "trusted" in only(good_but(environment=variables(UCX_NET_DEVICES="eth0"))).text
    ignored = good_but(environment=variables(UCX_LOG_LEVEL="debug"))
    assert not bad(ignored)
    assert "ignores UCX_LOG_LEVEL" in about(ignored, "ucx")[0].text


@pytest.mark.parametrize(
    ("value", "asks"),
    [("tcp", False), ("sm,tcp", True), ("all", True), ("^sm", False), ("^tcp", True), ("tcp,CMA", True), ("", False)],
)
def test_which_choices_of_transports_bring_shared_memory_back(value: str, asks: bool) -> None:
    assert asks_for_shared_memory(variables(UCX_TLS=value)) is asks


# --- software and model ----------------------------------------------------------------------------------------------


def test_a_missing_and_an_old_package_are_errors() -> None:
    missing = Package(name="uvloop", needs=">=0.21", installed=None, matches=False)
    old = Package(name="msgspec", needs=">=0.20", installed="0.18.0", matches=False)
    found = bad(good_but(software=replace(SOFTWARE, packages=(TORCH, missing, old))))
    assert [one.level for one in found] == [Level.ERROR, Level.ERROR]
    assert "uvloop is not installed" in found[0].text
    assert "msgspec is 0.18.0; kvrelay needs >=0.20" in found[1].text
    assert "pip install 'msgspec>=0.20'" in str(found[1].advice)


def test_an_old_libucx_listens_everywhere() -> None:
    old = Package(name="libucx-cu13", needs=">=1.21", installed="1.20.1", matches=False)
    found = only(good_but(software=replace(SOFTWARE, packages=(old,))))
    assert found.level is Level.WARNING
    assert "loopback" in found.text


def test_pythons() -> None:
    newer = good_but(software=replace(SOFTWARE, python="3.15.0"))
    assert not bad(newer)
    assert "3.11 and 3.12" in about(newer, "python")[0].text
    older = good_but(software=replace(SOFTWARE, python="3.10.1", python_matches=False))
    assert only(older).level is Level.ERROR


def test_a_tree_that_is_not_installed() -> None:
    assert "not installed" in only(good_but(software=replace(SOFTWARE, kvrelay=None, packages=()))).text


def test_another_system() -> None:
    assert only(good_but(software=replace(SOFTWARE, system="Darwin"))).level is Level.ERROR


def test_a_missing_model_is_no_problem_where_it_can_be_fetched() -> None:
    missing = replace(MODEL, present=False, needed_bytes=465_000_000)
    assert not bad(good_but(model=missing))
    assert "kvrelay model pull" in str(about(good_but(model=missing), "model")[0].advice)
    assert only(good_but(model=replace(missing, free_bytes=100_000_000))).level is Level.ERROR
    assert "cannot be written" in only(good_but(model=replace(missing, writable=False))).text


def test_a_damaged_model() -> None:
    found = only(good_but(model=replace(MODEL, damage=("tokenizer.json is missing",))))
    assert found.level is Level.ERROR
    assert "tokenizer.json is missing" in found.text
