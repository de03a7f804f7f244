"""Is the right software installed, and is the default model there?

Pure: facts to findings.
"""

from launch.doctor.facts import Facts, ModelFacts, Package, SoftwareFacts
from launch.doctor.finding import Finding, error, gigabytes, info, ok, warning

_TESTED = ("3.11", "3.12")  # what constraints.txt is for
_LOOPBACK_ONLY = "libucx-cu13"  # older ones cannot be kept to the loopback device


def judge(facts: Facts) -> list[Finding]:
    findings: list[Finding] = []
    if facts.software is not None:
        findings += [*_python(facts.software), *_packages(facts.software)]
    if facts.model is not None:
        findings.append(_model(facts.model))
    return findings


def _python(software: SoftwareFacts) -> list[Finding]:
    findings = []
    if software.system != "Linux":
        findings.append(
            error(
                "system",
                f"{software.system}: UCX and much of kvrelay's care for its processes are Linux's own",
                "use a Linux machine, a VM or a container",
            )
        )
    minor = ".".join(software.python.split(".")[:2])
    if not software.python_matches:
        findings.append(
            error(
                "python",
                f"{software.python} ({software.python_executable}); kvrelay needs {software.python_needs}",
                f"make .venv with another one: make clean, then make check PYTHON=python{_TESTED[-1]}",
            )
        )
    elif minor not in _TESTED:
        findings.append(
            info(
                "python",
                f"{software.python} ({software.python_executable}); the project is tested with {' and '.join(_TESTED)}",
                "if something odd happens, try it with one of those first",
            )
        )
    else:
        findings.append(ok("python", f"{software.python} ({software.python_executable})"))
    return findings


def _packages(software: SoftwareFacts) -> list[Finding]:
    if software.kvrelay is None:
        return [
            warning(
                "packages",
                "kvrelay is not installed for this Python, so nobody can say which versions it needs",
                "in a clone: make check, then . .venv/bin/activate",
            )
        ]
    findings = [_mismatch(package) for package in software.packages if not package.matches]
    if not findings:
        shown = ("torch", "transformers", "ucxx-cu13", "libucx-cu13", "pyzmq", "msgspec")
        versions = [f"{p.name} {p.installed}" for p in software.packages if p.name in shown]
        findings.append(ok("packages", f"all {len(software.packages)} fit: {', '.join(versions)}"))
    return findings


def _mismatch(package: Package) -> Finding:
    wanted = f"{package.name}{package.needs}"
    if package.name == _LOOPBACK_ONLY and package.installed is not None:
        return warning(
            "packages",
            f"{package.name} {package.installed} cannot be kept to the loopback device: it listens on every network "
            "device, and UCX authenticates nobody",
            f"pip install '{wanted}'",
        )
    found = "is not installed" if package.installed is None else f"is {package.installed}"
    return error(
        "packages",
        f"{package.name} {found}; kvrelay needs {package.needs or 'it'}",
        f"pip install '{wanted}', or in a clone all at once: pip install -c constraints.txt -e .",
    )


def _model(model: ModelFacts) -> Finding:
    if model.present and model.damage:
        return error(
            "model",
            f"{model.name} in {model.directory} is damaged: {', '.join(model.damage)}",
            f"rm -r '{model.directory}', then kvrelay model pull",
        )
    if model.present:
        return ok("model", f"{model.name} is in {model.directory}; the cache holds {gigabytes(model.cache_bytes)}")
    if not model.writable:
        return error(
            "model",
            f"{model.name} is not here, and {model.directory} cannot be written",
            "export KVRELAY_CACHE=a directory of yours; or kvrelay up --model with a local directory",
        )
    if model.free_bytes < model.needed_bytes:
        return error(
            "model",
            f"{model.name} is not here; fetching it takes {gigabytes(model.needed_bytes)} and "
            f"{gigabytes(model.free_bytes)} are free for {model.directory}",
            "make room, or export KVRELAY_CACHE=a directory on a larger disk",
        )
    return info(
        "model",
        f"{model.name} is not here yet; the first kvrelay up fetches it (93 MB to download, "
        f"{gigabytes(model.needed_bytes)} while it converts, {gigabytes(model.free_bytes)} are free)",
        "kvrelay model pull fetches it now",
    )
