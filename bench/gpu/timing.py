"""How long does something take on a device?

On a GPU between two CUDA events, on a CPU by its clock. What runs first is warm-up: kernels are loaded and compiled
then.
"""

import time
from collections.abc import Callable
from typing import Any

import torch

Work = Callable[[], object]


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_seconds(work: Work, device: torch.device, repetitions: int, warm_up: int = 3) -> list[float]:
    """Of each of `repetitions`; gaps between the kernels of one are part of it."""
    for _ in range(warm_up):
        work()
    synchronize(device)
    if device.type != "cuda":
        return [_clocked(work) for _ in range(repetitions)]
    seconds = []
    new_event: Any = torch.cuda.Event  # torch does not annotate it
    for _ in range(repetitions):
        start, end = new_event(enable_timing=True), new_event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3)
    return seconds


def wall_seconds(work: Work, device: torch.device, repetitions: int, warm_up: int = 3) -> list[float]:
    """As whoever waits for it sees it."""
    for _ in range(warm_up):
        work()
    seconds = []
    for _ in range(repetitions):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return seconds


def busy_seconds(work: Work, device: torch.device, repetitions: int) -> float | None:
    """The mean time for which kernels and copies ran, without the gaps between them; None where nobody can tell, as on
    a CPU.

    By torch's profiler, whose own cost falls into the gaps. What it has attached to the driver stays there: whatever
    is timed afterwards may be slower.
    """
    if device.type != "cuda":
        return None
    profiler: Any = torch.profiler  # not annotated
    with profiler.profile(activities=[profiler.ProfilerActivity.CUDA]) as recorded:
        for _ in range(repetitions):
            work()
        synchronize(device)
    autograd: Any = torch.autograd  # likewise
    on_device = [event for event in recorded.key_averages() if event.device_type == autograd.DeviceType.CUDA]
    microseconds = sum(float(event.self_device_time_total) for event in on_device)
    return microseconds / 1e6 / repetitions or None


def _clocked(work: Work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
