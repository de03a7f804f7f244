"""How are results shown and kept?

Pure: rows to text, rows and their environment to bytes, an environment to a file name.
"""

from collections.abc import Sequence

import msgspec

from bench.machine import Environment
from bench.rows import Row

_HEADER = ("quantity", "with", "median", "min", "max", "unit", "n", "note")


class Result(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A row that can be read alone."""

    row: Row
    environment: Environment


def to_json(rows: Sequence[Row], environment: Environment) -> bytes:
    """A JSON array of `Result`, indented, with a newline at its end."""
    results = [Result(row=row, environment=environment) for row in rows]
    return msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n"


def file_name(environment: Environment, only: str | None, *, quick: bool) -> str:
    """`<date>-<commit>.json`, with a mark for whatever makes it less than a full run of that commit."""
    marks = [environment.commit or "unversioned"]
    marks += ["dirty"] if environment.dirty else []
    marks += [only] if only is not None else []
    marks += ["quick"] if quick else []
    return f"{environment.date}-{'-'.join(marks)}.json"


def describe(environment: Environment) -> str:
    """One paragraph above the tables."""
    tree = environment.commit or "no commit"
    dirty = " with local changes" if environment.dirty else ""
    versions = (
        f"Python {environment.python}, torch {environment.torch}, transformers {environment.transformers}, "
        f"UCX {environment.ucx}, UCXX {environment.ucxx}"
    )
    busy = f"load average {environment.load_average:g} before the run"
    return f"{environment.cpu}, {environment.cores} cores, {busy}; {versions}; {tree}{dirty}; {environment.command}"


def table(rows: Sequence[Row]) -> str:
    """Rows of one benchmark in columns; what limits them is numbered below."""
    notes = list(dict.fromkeys(row.limited_by for row in rows))
    cells = [_HEADER, *(_cells(row, notes.index(row.limited_by) + 1) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(_align(cell, width, i) for i, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip()
        for line in cells
    ]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join([*lines, *(f"[{number}] {note}" for number, note in enumerate(notes, 1))])


def _cells(row: Row, note: int) -> tuple[str, ...]:
    parameters = ", ".join(f"{name} {value}" for name, value in row.parameters.items())
    values = (_number(row.median), _number(row.minimum), _number(row.maximum))
    return (row.quantity, parameters, *values, row.unit, str(row.repetitions), f"[{note}]")


def _align(cell: str, width: int, column: int) -> str:
    is_number = 2 <= column <= 4 or column == 6
    return cell.rjust(width) if is_number else cell.ljust(width)


def _number(value: float) -> str:
    """Four significant digits, and all digits before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
