"""How is the outcome of the check shown and kept?

Pure: outcomes to text, outcomes and where they were measured to bytes.
"""

import re
from collections.abc import Sequence

import msgspec
from msgspec import Struct

from bench import report
from bench.gpu.parts import Outcome
from bench.machine import Environment
from bench.rows import Row

_SHOWN_CHARS = 3000
_WARNING = re.compile(r"^[\d:.]+ (?:WARNING|ERROR|CRITICAL) .*$", re.MULTILINE)  # as `runtime.logs` writes them


class Check(Struct, frozen=True, kw_only=True):
    """One run of `make gpu-check`."""

    environment: Environment
    outcomes: tuple[Outcome, ...]
    beside: tuple[Row, ...] = ()  # of rows of several parts


def to_json(check: Check) -> bytes:
    return msgspec.json.format(msgspec.json.encode(check), indent=2) + b"\n"


def file_name(environment: Environment, only: Sequence[str], *, on_gpu: bool) -> str:
    """`<date>-<commit>-gpu.json`, with a mark for whatever makes it less than a full run on a GPU."""
    marks = "-".join(["gpu", *only, *([] if on_gpu else ["interpret"])])
    return report.file_name(environment, marks, quick=False)


def part(outcome: Outcome) -> str:
    """What one part found, ratios first; of what it printed the warnings, or the end if it went wrong."""
    lines = [f"{outcome.part}: {outcome.question} {outcome.status} ({outcome.seconds:.0f} s)"]
    lines += [f"  {key}: {value}" for key, value in outcome.facts.items()]
    if outcome.rows:
        lines.append(report.table(sorted(outcome.rows, key=lambda row: row.unit != "ratio")))
    lines += [f"- {note}" for note in outcome.notes]
    ending = outcome.printed[-_SHOWN_CHARS:].splitlines() if outcome.why else _WARNING.findall(outcome.printed)
    lines += [f"  {line}" for line in ([outcome.why] if outcome.why else []) + ending]
    return "\n".join(lines)


def summary(outcomes: Sequence[Outcome]) -> str:
    """One line per part."""
    width = max(len(outcome.part) for outcome in outcomes)
    lines = (f"{one.part:<{width}}  {one.status:<11}  {one.seconds:4.0f} s  {one.question}" for one in outcomes)
    return "\n".join(lines)
