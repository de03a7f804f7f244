"""How is an examination shown, to a person and to a program?

The form of the JSON is promised: docs/operations.md#the-json-of-kvrelay-doctor. Levels are words and no signs, so that
a pasted or piped report reads the same.
"""

import io

import msgspec
from msgspec import Struct
from rich.console import Console
from rich.table import Table
from rich.text import Text

from launch.doctor.examine import Examination
from launch.doctor.facts import Facts
from launch.doctor.finding import Finding, Level, gigabytes
from launch.doctor.judge import works

SCHEMA = 1

_STYLES = {Level.OK: "green", Level.INFO: "cyan", Level.WARNING: "bold yellow", Level.ERROR: "bold red"}
_PLAIN_WIDTH = 10_000  # a line in a file is not wrapped: grep finds all of it


class Report(Struct, frozen=True, kw_only=True):
    schema: int = SCHEMA
    works: bool
    findings: tuple[Finding, ...]
    facts: Facts


def as_json(examination: Examination) -> str:
    report = Report(works=works(examination.findings), findings=examination.findings, facts=examination.facts)
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode()


def show(console: Console, examination: Examination) -> None:
    if console.is_terminal:
        _draw(console, examination)
        return
    plain = Console(file=io.StringIO(), width=_PLAIN_WIDTH, emoji=False)
    with plain.capture() as drawn:
        _draw(plain, examination)
    for line in drawn.get().splitlines():
        console.file.write(line.rstrip() + "\n")


def _draw(console: Console, examination: Examination) -> None:
    console.print(Text(headline(examination.facts), style="bold"), "", sep="\n")
    table = Table.grid(padding=(0, 2, 0, 0))
    for column in ("level", "topic"):
        table.add_column(column, no_wrap=True)
    table.add_column("what", overflow="fold")
    said = None
    for finding in examination.findings:
        topic = "" if console.is_terminal and finding.topic == said else finding.topic
        said = finding.topic
        table.add_row(Text(finding.level.value, style=_STYLES[finding.level]), Text(topic), _what(finding))
    console.print(table)
    console.print()
    console.print(_verdict(examination.findings))


def headline(facts: Facts) -> str:
    parts = []
    if facts.software is not None:
        parts.append(f"kvrelay {facts.software.kvrelay or '(not installed)'} on {facts.software.platform}")
    if facts.cpu is not None:
        parts.append(f"{facts.cpu.machine_cores} cores")
    if facts.memory is not None:
        parts.append(f"{gigabytes(facts.memory.total_bytes)} of memory")
    if facts.gpu is not None:
        count = len(facts.gpu.gpus)
        parts.append("no GPU" if count == 0 else "1 GPU" if count == 1 else f"{count} GPUs")
    return ", ".join(parts)


def _what(finding: Finding) -> Text:
    text = Text(finding.text)
    if finding.advice is not None:
        text.append(f"\n-> {finding.advice}", style="bold" if finding.level in (Level.WARNING, Level.ERROR) else "dim")
    return text


def _verdict(findings: tuple[Finding, ...]) -> Text:
    errors = sum(finding.level is Level.ERROR for finding in findings)
    warnings = sum(finding.level is Level.WARNING for finding in findings)
    if errors:
        also = f" {_number(warnings, 'warning')} beside." if warnings else ""
        return Text(f"{_number(errors, 'thing')} would keep kvrelay from working.{also}", style="bold red")
    if warnings:
        return Text(
            f"kvrelay works here, with {_number(warnings, 'warning')}. Start it: kvrelay up", style="bold yellow"
        )
    return Text("Nothing is wrong. Start it: kvrelay up", style="bold green")


def _number(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")
