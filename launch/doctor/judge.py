"""Which findings follow from the facts?

Pure. The order is the one a reader wants: what keeps kvrelay from working stands out by its level, not by its place.
"""

from launch.doctor import accelerators, installation, machine, transfer
from launch.doctor.facts import Facts
from launch.doctor.finding import Finding, Level

_ORDER = (
    "system",
    "python",
    "packages",
    "cores",
    "load",
    "memory",
    "swap",
    "limits",
    "shared memory",
    "gpu",
    "gpu links",
    "kv link",
    "ucx",
    "model",
    "port",
    "cells",
)


def judge(facts: Facts, needed_bytes: int) -> tuple[Finding, ...]:
    """`needed_bytes`: memory for 1P1D with the default model and default pools."""
    findings = [
        *installation.judge(facts),
        *machine.judge(facts, needed_bytes),
        *accelerators.judge(facts),
        *transfer.judge(facts),
    ]
    return in_order(findings)


def in_order(findings: list[Finding]) -> tuple[Finding, ...]:
    """By topic; within one as they were found."""
    place = {topic: index for index, topic in enumerate(_ORDER)}
    return tuple(sorted(findings, key=lambda finding: place.get(finding.topic, len(_ORDER))))


def works(findings: tuple[Finding, ...]) -> bool:
    """False when something would keep kvrelay from working; warnings alone do not."""
    return all(finding.level is not Level.ERROR for finding in findings)
