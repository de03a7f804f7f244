"""Is everything that the project depends on declared, pinned and explained, and nothing else?"""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.tree import PACKAGES, ROOT, project_files

WITH_TORCH = {"triton"}
"""What the CUDA build of torch brings; it is imported where there is a CUDA device, and by tests."""

NOT_IMPORTED = {"httptools", "pip", "safetensors"}
"""httptools is how uvicorn parses, safetensors how transformers reads weights; pip runs as a program."""


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def runtime(project: dict[str, Any]) -> dict[str, Requirement]:
    return _requirements(project["project"]["dependencies"])


@pytest.fixture(scope="module")
def development(project: dict[str, Any]) -> dict[str, Requirement]:
    return _requirements(project["project"]["optional-dependencies"]["dev"])


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert len({name for name, _ in pinned}) == len(pinned)
    return {canonicalize_name(name): version for name, version in pinned}


def _requirements(lines: list[str]) -> dict[str, Requirement]:
    parsed = [Requirement(line) for line in lines]
    return {canonicalize_name(requirement.name): requirement for requirement in parsed}


def test_every_dependency_is_pinned_to_a_version_that_it_allows(
    runtime: dict[str, Requirement], development: dict[str, Requirement], pins: dict[str, str]
) -> None:
    for name, requirement in (runtime | development).items():
        assert name in pins, f"{name} has no pin in constraints.txt"
        assert requirement.specifier.contains(pins[name]), f"{requirement} does not allow {pins[name]}"


def test_every_dependency_has_a_row_in_the_document_and_every_row_a_dependency(
    runtime: dict[str, Requirement], development: dict[str, Requirement]
) -> None:
    document = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.-]+)` \|", document, re.MULTILINE)
    assert sorted(rows) == sorted(runtime | development)


def test_the_build_packs_every_package(project: dict[str, Any]) -> None:
    with_code = {path.parent for path in project_files("__init__.py") if path.parts[0] != "tests"}
    packed = project["tool"]["setuptools"]["packages"]
    assert sorted(packed) == sorted(".".join(folder.parts) for folder in with_code)
    assert {name.split(".")[0] for name in packed} == set(PACKAGES)


def test_what_is_imported_is_declared(runtime: dict[str, Requirement], development: dict[str, Requirement]) -> None:
    distributions = packages_distributions()
    ours = {*PACKAGES, "tests"}
    undeclared = []
    imported = set()
    for path in project_files(".py"):
        is_test = path.parts[0] == "tests"
        allowed = runtime | development if is_test else runtime
        for module in _imports(path) - ours - sys.stdlib_module_names:
            names = {canonicalize_name(name) for name in distributions.get(module, [module])}
            imported |= set() if is_test else names
            if not names & (allowed.keys() | WITH_TORCH):
                undeclared.append(f"{path}: {module}")
    assert not undeclared, "\n".join(undeclared)
    unused = runtime.keys() - imported - NOT_IMPORTED
    assert not unused, f"declared and never imported: {sorted(unused)}"


def _imports(path: Path) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names
