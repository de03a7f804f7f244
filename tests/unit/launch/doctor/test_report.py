"""Is a report the same in a pipe as on a terminal, and does its JSON keep its form?"""

import io
import json

import pytest
from msgspec.structs import replace
from rich.console import Console
from rich.text import Text

from launch.doctor.examine import Examination
from launch.doctor.facts import Facts, LinkFacts
from launch.doctor.judge import judge
from launch.doctor.report import as_json, headline, show
from tests.support.machines import CPU, GOOD, good_but

BROKEN = good_but(link=LinkFacts(error="decode-0 ended", last_lines=("[bold]no such device[/]",)))
BUSY = good_but(cpu=replace(CPU, load_1m=9.0))


def examination(facts: Facts) -> Examination:
    return Examination(facts, judge(facts, 3_000_000_000))


def shown(facts: Facts, *, terminal: bool) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80)
    show(console, examination(facts))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_pipe_gets_whole_lines_without_colours() -> None:
    lines = shown(BROKEN, terminal=False).splitlines()
    assert not any("\x1b" in line or line != line.rstrip() for line in lines)
    assert any(line.startswith("ok     cores    ") and line.endswith("decode on cores 2-3") for line in lines)
    assert any(line.endswith(" [bold]no such device[/]") for line in lines), "what a process said is not markup"
    assert lines[-1] == "1 thing would keep kvrelay from working."


def test_a_terminal_gets_lines_that_fit() -> None:
    text = shown(BROKEN, terminal=True)
    assert "\x1b[" in text
    assert all(len(Text.from_ansi(line)) <= 80 for line in text.splitlines())


@pytest.mark.parametrize(
    ("facts", "verdict"),
    [
        (GOOD, "Nothing is wrong. Start it: kvrelay up"),
        (BUSY, "kvrelay works here, with 1 warning. Start it: kvrelay up"),
        (BROKEN, "1 thing would keep kvrelay from working."),
    ],
)
def test_the_last_line_is_the_verdict(facts: Facts, verdict: str) -> None:
    assert shown(facts, terminal=False).splitlines()[-1] == verdict


def test_the_headline_says_what_is_known() -> None:
    assert headline(GOOD) == "kvrelay 0.1.0 on Linux 6.1 (x86_64), 4 cores, 16.0 GB of memory, no GPU"
    assert headline(Facts()) == ""
    assert headline(Facts(cpu=CPU)) == "4 cores"


def test_the_json_has_its_promised_form() -> None:
    report = json.loads(as_json(examination(BROKEN)))
    assert list(report) == ["schema", "works", "findings", "facts"]
    assert (report["schema"], report["works"]) == (1, False)
    assert set(report["findings"][0]) == {"level", "topic", "text", "advice"}
    assert {one["level"] for one in report["findings"]} <= {"ok", "info", "warning", "error"}
    assert set(report["facts"]) == {
        "cpu",
        "memory",
        "gpu",
        "link",
        "limits",
        "port",
        "cells",
        "software",
        "model",
        "environment",
    }
    assert report["facts"]["link"]["last_lines"] == ["[bold]no such device[/]"]
