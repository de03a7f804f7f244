"""Which versions are installed, and which ones does kvrelay ask for?

Nothing is imported to find out: the metadata of the packages says it.
"""

import sys
from collections.abc import Callable, Sequence
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from launch.doctor.facts import Package, SoftwareFacts

_BEYOND = ("libucx-cu13>=1.21",)
"""Needed by way of others: UCX itself, which UCXX asks for in any version (ADR-0013)."""

Version = Callable[[str], str]  # as `importlib.metadata.version`


def software(system: str, platform: str) -> SoftwareFacts:
    try:
        installed = metadata.distribution("kvrelay")
    except metadata.PackageNotFoundError:
        return _facts(system, platform, "", None, ())
    needs = ", ".join(installed.metadata.get_all("Requires-Python") or ())
    return _facts(
        system, platform, needs, installed.version, packages([*(installed.requires or ()), *_BEYOND], metadata.version)
    )


def packages(requirements: Sequence[str], version: Version) -> tuple[Package, ...]:
    """One row for each requirement that counts on this machine; those of extras do not."""
    wanted = [Requirement(text) for text in requirements]
    here = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    return tuple(sorted((_package(one, version) for one in here), key=lambda package: package.name))


def _package(requirement: Requirement, version: Version) -> Package:
    needs = str(requirement.specifier)
    name = canonicalize_name(requirement.name)
    try:
        installed = version(requirement.name)
    except metadata.PackageNotFoundError:
        return Package(name=name, needs=needs, installed=None, matches=False)
    matches = requirement.specifier.contains(installed, prereleases=True)
    return Package(name=name, needs=needs, installed=installed, matches=matches)


def _facts(system: str, platform: str, needs: str, kvrelay: str | None, found: tuple[Package, ...]) -> SoftwareFacts:
    python = ".".join(map(str, sys.version_info[:3]))
    return SoftwareFacts(
        system=system,
        platform=platform,
        python=python,
        python_executable=sys.executable,
        python_needs=needs,
        python_matches=SpecifierSet(needs).contains(python, prereleases=True),
        kvrelay=kvrelay,
        packages=found,
    )
