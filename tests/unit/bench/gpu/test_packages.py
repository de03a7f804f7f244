"""Does the check name what is missing, and does it know all that it needs?"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.gpu import packages
from tests.support.tree import PACKAGES, ROOT

ENTRIES = (
    "bench.gpu.command",
    "bench.gpu.part",
    "bench.gpu.mortal",
    "bench.gpu.limits",
    "bench.gpu.kernels",
    "bench.gpu.exactness",
    "bench.gpu.steps",
    "bench.gpu.transfer",
    "bench.gpu.killed",
    "bench.gpu.handoff",
    "bench.gpu.evaluation",
    "bench.gpu.batching",
    "bench.gpu.compiled",
    "bench.transfer_peer",
    "bench.one_process",
    "coordinator.__main__",
    "prefill_worker.__main__",
    "decode_worker.__main__",
    "launch.cli",
    "tests.conftest",
    "tests.e2e.test_gpu_exactness",
)
NOT_NEEDED = {"matplotlib"}
"""Of the report of an evaluation, which the check does not draw."""


def source(module: str) -> Path | None:
    base = ROOT / module.replace(".", "/")
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_everything_that_the_check_imports_is_looked_for_first() -> None:
    ours = {*PACKAGES, "tests"}
    waiting, seen, others = list(ENTRIES), set(), set()
    while waiting:
        module = waiting.pop()
        path = source(module)
        if module in seen or path is None:
            continue
        seen.add(module)
        for name in imported(path):
            top = name.split(".")[0]
            if top in ours:
                waiting.append(name)
            elif top not in sys.stdlib_module_names:
                others.add(top)
    assert others - NOT_NEEDED <= packages.NEEDED.keys()
    assert seen >= set(ENTRIES)


def test_what_has_to_be_installed_is_pinned() -> None:
    pins = packages.pins()
    named = {name for names in packages.NEEDED.values() for name in names}
    assert named <= pins.keys()


def test_a_missing_package_is_named_with_its_companions_and_one_command() -> None:
    said = packages.message(["ucxx-cu13", "libucxx-cu13", "msgspec"], {"ucxx-cu13": "0.52.0", "msgspec": "0.22.0"})
    assert "needs 3 packages" in said
    assert f"{sys.executable} -m pip install --no-deps ucxx-cu13==0.52.0 libucxx-cu13 msgspec==0.22.0\n" in said
    assert "--find-links" in said


def test_a_torch_is_not_chosen_for_anybody() -> None:
    said = packages.message(["torch", "msgspec"], {"torch": "2.13.0"})
    assert "First a torch that fits the driver" in said
    assert "torch==2.13.0" not in said


def test_companions_that_are_there_are_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert packages.distributions(["cyclopts"]) == []
    monkeypatch.setattr(packages, "_is_installed", lambda name: name == "attrs")
    assert packages.distributions(["cyclopts"]) == ["cyclopts", "docstring-parser", "rich-rst"]


def test_what_is_there_is_not_missing() -> None:
    assert packages.missing(["msgspec", "no_such_module_here"]) == ["no_such_module_here"]


@pytest.mark.parametrize(
    ("ucx", "devices", "fine"),
    [
        ("1.21.0", ["lo"], True),
        ("1.20.1", ["lo", "eth0"], True),
        ("1.20.1", ["lo"], False),
        (None, ["lo"], True),
        ("2.0", ["lo"], True),
    ],
)
def test_an_old_ucx_needs_more_than_the_loopback_device(ucx: str | None, devices: list[str], fine: bool) -> None:
    assert (packages.unreachable(ucx, devices) is None) is fine
