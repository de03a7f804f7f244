"""Does everything that the documents name exist?

Checked in README.md and docs/: paths, functions, modules, request phases and links; commands and options of `kvrelay`;
`make` targets. A name counts when it stands in backticks or in a fenced block.
"""

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from cyclopts import App

from coordinator.state import Phase
from tests.support.tree import PACKAGES, ROOT, project_files

FENCE = re.compile(r"^( *)```[^\n]*\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)
FILE = re.compile(r"(?!/)[\w./-]*/[\w./-]*(?:\.(?:py|md|toml|txt|json|jsonl|csv|sh|yml|svg)|/)|[\w-]+\.(?:md|toml)")
FUNCTION = re.compile(r"([\w./-]+\.py|[\w.]+):([A-Za-z_][\w.]*)")
MODULE = re.compile(rf"(?:{'|'.join(PACKAGES)})(?:\.\w+)+")
PHASE = re.compile(r"\bPhase\.(\w+)")
MAKE = re.compile(r"^\s*(?:\$ )?make(?: -C \S+)?((?: [a-z-]+)+)\s*(?:#.*)?$", re.MULTILINE)
OPTION = re.compile(r"--?[A-Za-z][\w-]*")


@dataclass(frozen=True)
class Document:
    path: Path
    prose: str
    blocks: tuple[str, ...]

    @property
    def spans(self) -> list[str]:
        return SPAN.findall(self.prose)


@cache
def documents() -> tuple[Document, ...]:
    paths = [path for path in project_files(".md") if path.name == "README.md" or path.parts[0] == "docs"]
    texts = {path: (ROOT / path).read_text(encoding="utf-8") for path in paths}
    return tuple(
        Document(path, FENCE.sub("", text), tuple(match[2] for match in FENCE.finditer(text)))
        for path, text in texts.items()
    )


def in_spans(pattern: re.Pattern[str]) -> list[tuple[Path, re.Match[str]]]:
    """Every whole span of backticks that the pattern matches, with its document."""
    found = [(document.path, pattern.fullmatch(span)) for document in documents() for span in document.spans]
    return [(path, match) for path, match in found if match]


def commands(text: str) -> Iterator[list[str]]:
    """The words of every `kvrelay` command in a fenced block or a span."""
    for line in text.replace("\\\n", " ").splitlines():
        try:
            words = shlex.split(line.removeprefix("$ "), comments=True)
        except ValueError:
            continue  # not a shell line
        while words and re.fullmatch(r"\w+=.*", words[0]):
            words = words[1:]
        if words and Path(words[0]).name == "kvrelay":
            yield words[1:]


def defines(path: Path, name: str) -> bool:
    """Whether the Python file defines `name`, which may be `Class.member`."""
    body: list[ast.stmt] = ast.parse(path.read_text(encoding="utf-8")).body
    for part in name.split("."):
        found = next((node for node in body if part in _names(node)), None)
        if found is None:
            return False
        body = found.body if isinstance(found, ast.ClassDef) else []
    return True


def _names(node: ast.stmt) -> set[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.Assign(targets=targets):
            return {target.id for target in targets if isinstance(target, ast.Name)}
        case ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
    return set()


def module_file(dotted: str) -> Path | None:
    path = ROOT.joinpath(*dotted.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def module_exists(dotted: str) -> bool:
    """Whether `package.module` or `package.module.Name.member` exists."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        file = module_file(".".join(parts[:count]))
        if file is not None:
            return count == len(parts) or defines(file, ".".join(parts[count:]))
    return False


def slug(heading: str) -> str:
    """The anchor that Markdown viewers give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def options_of(app: App) -> set[str]:
    names = {*app.help_flags, *app.version_flags}
    if app.default_command is not None:
        for argument in app.assemble_argument_collection():
            names |= {*argument.names, *argument.negatives}
    return names


def all_options(app: App) -> set[str]:
    return options_of(app).union(*(all_options(app[name]) for name in app if not name.startswith("-")))


def wrong_in(app: App, words: list[str]) -> str | None:
    """What in a command line `app` does not know; None when it is all there."""
    while words and not words[0].startswith("-") and words[0] in app:
        app, words = app[words[0]], words[1:]
    has_subcommands = any(not name.startswith("-") for name in app)
    if words and has_subcommands and not words[0].startswith("-"):
        return words[0]
    used = {word.split("=")[0] for word in words if OPTION.fullmatch(word.split("=")[0])}
    return next(iter(sorted(used - options_of(app))), None)


@pytest.fixture(scope="module")
def cli() -> App:
    from launch.cli import app  # noqa: PLC0415 - the other tests of this file do not need it

    return app


def test_named_paths_exist() -> None:
    missing = [
        f"{document}: {match[0]}"
        for document, match in in_spans(FILE)
        if not (ROOT / match[0]).exists() and not (ROOT / document.parent / match[0]).exists()
    ]
    assert not missing, "\n".join(missing)


def test_named_functions_exist() -> None:
    missing = []
    for document, match in in_spans(FUNCTION):
        file = ROOT / match[1] if match[1].endswith(".py") else module_file(match[1])
        if match[1].split(".")[0] not in PACKAGES and not match[1].endswith(".py"):
            continue  # not a module of ours
        if file is None or not file.is_file() or not defines(file, match[2]):
            missing.append(f"{document}: {match[0]}")
    assert not missing, "\n".join(missing)


def test_named_modules_exist() -> None:
    missing = [f"{document}: {match[0]}" for document, match in in_spans(MODULE) if not module_exists(match[0])]
    assert not missing, "\n".join(missing)


def test_named_phases_exist_and_all_phases_are_named() -> None:
    named = {phase: document.path for document in documents() for phase in PHASE.findall(document.prose)}
    unknown = [f"{path}: Phase.{phase}" for phase, path in named.items() if phase not in Phase.__members__]
    assert not unknown, "\n".join(unknown)
    unnamed = Phase.__members__.keys() - named.keys()
    assert not unnamed, f"no document tells of the phases {sorted(unnamed)}"


def test_named_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    missing = [
        f"{document.path}: make {target}"
        for document in documents()
        for text in (*document.spans, *document.blocks)
        for match in MAKE.finditer(text)
        for target in match[1].split()
        if target not in targets
    ]
    assert not missing, "\n".join(missing)


def test_relative_links_resolve() -> None:
    broken = []
    for document in documents():
        for target in LINK.findall(document.prose):
            if re.match(r"[a-z]+:", target):
                continue  # another site
            name, _, anchor = target.partition("#")
            file = ROOT / document.path.parent / name if name else ROOT / document.path
            if not file.exists():
                broken.append(f"{document.path}: {target}")
            elif anchor and anchor not in {slug(heading) for heading in HEADING.findall(file.read_text("utf-8"))}:
                broken.append(f"{document.path}: {target} has no such heading")
    assert not broken, "\n".join(broken)


def test_named_commands_and_options_exist(cli: App) -> None:
    known = all_options(cli)
    wrong = []
    for document in documents():
        for text in (*document.spans, *document.blocks):
            complaints = (wrong_in(cli, words) for words in commands(text))
            wrong += [f"{document.path}: {word} in: {text.strip()}" for word in complaints if word]
        loose = {span.split("=")[0].split()[0] for span in document.spans if span.startswith("--")}
        wrong += [f"{document.path}: {option}" for option in sorted(loose - known)]
    assert not wrong, "\n".join(wrong)


def test_a_wrong_command_is_noticed() -> None:
    app, model = App(name="kvrelay"), App(name="model")
    app.command(model)

    @model.command
    def pull(name: str, *, cache_dir: str = "") -> None: ...

    assert wrong_in(app, ["model", "pull", "smollm2", "--cache-dir=x"]) is None
    assert wrong_in(app, ["model", "push"]) == "push"
    assert wrong_in(app, ["modle", "pull"]) == "modle"
    assert wrong_in(app, ["model", "pull", "--cachedir", "x"]) == "--cachedir"
    assert all_options(app) >= {"--cache-dir", "--name", "--help"}
    assert list(commands("A=1 kvrelay model \\\n  pull x # note\nother --thing\n$ .venv/bin/kvrelay up")) == [
        ["model", "pull", "x"],
        ["up"],
    ]


def test_a_wrong_name_is_noticed() -> None:
    assert defines(ROOT / "transport/pieces.py", "Piece.end")
    assert not defines(ROOT / "transport/pieces.py", "Piece.start")
    assert module_exists("transport.pieces.refine")
    assert not module_exists("transport.parts")
    assert slug("5. What `UCX` does, and why") == "5-what-ucx-does-and-why"
