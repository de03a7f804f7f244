"""Can the GPUs of this machine serve, and how fast do they reach each other?

Pure: facts to findings. A machine without a GPU is as good as any other.
"""

from launch.doctor.facts import Facts, Gpu, GpuFacts, GpuPath, SoftwareFacts
from launch.doctor.finding import Finding, error, gigabytes, info, ok, variable, warning

_CUDA_13_DRIVER = 580  # the oldest branch that CUDA 13 runs on
_ALLOCATOR_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")  # `engine.pool` refuses the same


def judge(facts: Facts) -> list[Finding]:
    gpu = facts.gpu
    if gpu is None:
        return []
    if not gpu.gpus:
        return _none(gpu)
    findings = [ok("gpu", _names(gpu))]
    if gpu.nvidia_smi_error is not None:
        findings.append(
            warning(
                "gpu",
                f"nvidia-smi fails: {gpu.nvidia_smi_error}",
                "the kernel's driver and the libraries do not fit together, often after an update: reboot, or "
                "install one version of both",
            )
        )
    findings += _driver(gpu, facts.software)
    findings += _torch(facts.software)
    findings += _allocator(facts)
    findings += _visible(facts, gpu)
    findings += _paths(gpu.paths)
    return findings


def _none(gpu: GpuFacts) -> list[Finding]:
    if gpu.driver is None:
        return [info("gpu", "none; workers compute on the CPU")]
    why = "" if gpu.nvidia_smi_error is None else f" (nvidia-smi: {gpu.nvidia_smi_error})"
    return [
        warning(
            "gpu",
            f"NVIDIA driver {gpu.driver} is loaded, but no GPU is to be seen{why}",
            "in a container: docker run --gpus all; else nvidia-smi and dmesg say why. The CPU works as it is",
        )
    ]


def _names(gpu: GpuFacts) -> str:
    described = [_describe(one) for one in gpu.gpus]
    same = len(set(described)) == 1 and len(described) > 1
    which = f"{len(described)} x {described[0]}" if same else ", ".join(described)
    return f"{which}; driver {gpu.driver or 'unknown'}"


def _describe(gpu: Gpu) -> str:
    return gpu.name if gpu.memory_bytes is None else f"{gpu.name} with {gigabytes(gpu.memory_bytes)}"


def _driver(gpu: GpuFacts, software: SoftwareFacts | None) -> list[Finding]:
    major = (gpu.driver or "").partition(".")[0]
    if _torch_version(software) is None or _is_cpu_only(software) or not major.isdigit():
        return []
    if int(major) >= _CUDA_13_DRIVER:
        return []
    return [
        warning(
            "gpu",
            f"driver {gpu.driver} is older than CUDA 13, which UCX and torch are built for here, can use",
            f"install driver {_CUDA_13_DRIVER} or later; until then workers run with --device cpu",
        )
    ]


def _torch(software: SoftwareFacts | None) -> list[Finding]:
    if not _is_cpu_only(software):
        return []
    return [
        warning(
            "gpu",
            f"torch {_torch_version(software)} is built for the CPU only: the GPU stays idle",
            "pip install --force-reinstall torch from an index with CUDA builds, then kvrelay up --device cuda:0",
        )
    ]


def _allocator(facts: Facts) -> list[Finding]:
    findings = []
    for name in _ALLOCATOR_VARIABLES:
        settings = [part.strip().lower() for part in (variable(facts, name) or "").split(",")]
        if "expandable_segments:true" in settings:
            findings.append(
                error(
                    "gpu",
                    f"{name} has expandable_segments:True: such memory has no cuda_ipc handle, so NVLink would be out "
                    "of reach, and workers on a GPU refuse to start",
                    f"unset {name}",
                )
            )
    return findings


def _visible(facts: Facts, gpu: GpuFacts) -> list[Finding]:
    chosen = variable(facts, "CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return []
    if chosen.strip() in ("", "-1"):
        return [
            warning(
                "gpu",
                f"CUDA_VISIBLE_DEVICES={chosen!r} hides every GPU from the workers",
                "unset CUDA_VISIBLE_DEVICES, unless that is meant",
            )
        ]
    return [
        info("gpu", f"CUDA_VISIBLE_DEVICES={chosen}: workers see only these of {len(gpu.gpus)}; cuda:0 is the first")
    ]


def _paths(paths: tuple[GpuPath, ...]) -> list[Finding]:
    if not paths:
        return []
    nvlink = [path for path in paths if path.path.startswith("NV")]
    far = [path for path in paths if path.path in ("SYS", "NODE")]
    shown = ", ".join(f"{path.a}-{path.b} {path.path}" for path in paths)
    if len(nvlink) == len(paths):
        which = "the two" if len(paths) == 1 else f"all {len(paths)} pairs"
        return [ok("gpu links", f"NVLink between {which} ({_ways(nvlink)})")]
    if far:
        return [
            warning(
                "gpu links",
                f"pages between some GPUs cross the processor's own bus: {shown}",
                "put prefill and decode on GPUs with NV# or PIX between them: kvrelay up --device cuda:A,cuda:B",
            )
        ]
    return [info("gpu links", f"{shown}; NV# is NVLink, the others are ways over PCIe")]


def _ways(paths: list[GpuPath]) -> str:
    return ", ".join(sorted({path.path for path in paths}))


def _torch_version(software: SoftwareFacts | None) -> str | None:
    packages = () if software is None else software.packages
    return next((package.installed for package in packages if package.name == "torch"), None)


def _is_cpu_only(software: SoftwareFacts | None) -> bool:
    return "+cpu" in (_torch_version(software) or "")
