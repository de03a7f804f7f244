"""Does every file keep the rules that no linter knows?

Each rule is a function from a file to its complaints; the tests at the end show that each rule can fail.
"""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.tree import ROOT, project_files

MAX_LINES = 400
CODE_LOADERS = {"pickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
LOADING_CALLS = {"torch.load", "numpy.load", "np.load"}
PYOBJ_METHODS = (".recv_pyobj", ".send_pyobj")
FIRST_SENTENCE = re.compile(r".*?[.?!](?=\s|$)", re.DOTALL)
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:work|root|tmp/probe)(?![\w-])")
REGISTRY_HOST = re.compile(
    r"pypi\.org|pythonhosted\.org|pypi\.nvidia\.com|download\.pytorch\.org|registry\.npmjs\.org|\bdeb\.debian\.org"
)


def too_long(path: Path, text: str) -> Iterator[str]:
    lines = text.count("\n")
    if path.suffix == ".py" and lines > MAX_LINES:
        yield f"{lines} lines; {MAX_LINES} are allowed, so it answers more than one question"


def code_in_init(path: Path, text: str) -> Iterator[str]:
    if path.name == "__init__.py" and text:
        yield "is not empty: importing a package must not load its parts"


def code_from_bytes(path: Path, text: str) -> Iterator[str]:
    """Whatever could turn bytes of a peer or of a downloaded file into running code."""
    if path.suffix != ".py":
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [f"{node.value.id if isinstance(node.value, ast.Name) else ''}.{node.attr}"]
        else:
            continue
        for name in names:
            if name.split(".")[0] in CODE_LOADERS or name in LOADING_CALLS or name.endswith(PYOBJ_METHODS):
                yield f"line {node.lineno}: {name}"


def no_question(path: Path, text: str) -> Iterator[str]:
    if path.suffix != ".py" or path.parts[0] == "tests" or path.name == "__init__.py":
        return
    docstring = ast.get_docstring(ast.parse(text))
    sentence = FIRST_SENTENCE.match(docstring) if docstring else None
    if sentence is None or not sentence[0].endswith("?"):
        yield "its docstring does not open with the question that the module answers"


def machine_path(_path: Path, text: str) -> Iterator[str]:
    for match in MACHINE_PATH.finditer(text):
        yield f"line {text.count(chr(10), 0, match.start()) + 1}: the path {match[0]} of one machine"


def registry_host(_path: Path, text: str) -> Iterator[str]:
    for match in REGISTRY_HOST.finditer(text):
        yield f"line {text.count(chr(10), 0, match.start()) + 1}: {match[0]}; pip knows which index its user has"


Rule = Callable[[Path, str], Iterator[str]]
RULES: tuple[Rule, ...] = (too_long, code_in_init, code_from_bytes, no_question, machine_path, registry_host)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_file_keeps_the_rule(rule: Rule) -> None:
    complaints = []
    for path in project_files():
        try:
            text = (ROOT / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # not a text file
        complaints += [f"{path}: {complaint}" for complaint in rule(path, text)]
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize(
    ("rule", "name", "text"),
    [
        (too_long, "engine/x.py", "\n" * (MAX_LINES + 1)),
        (code_in_init, "engine/__init__.py", "from engine import pool\n"),
        (code_from_bytes, "engine/x.py", "import pickle.whatever\n"),
        (code_from_bytes, "tests/unit/test_x.py", "def f():\n    from marshal import loads\n"),
        (code_from_bytes, "engine/x.py", "import torch\nweights = torch.load('x', weights_only=True)\n"),
        (code_from_bytes, "engine/x.py", "from torch import load\n"),
        (code_from_bytes, "transport/x.py", "message = socket.recv_pyobj()\n"),
        (no_question, "engine/x.py", "x = 1\n"),
        (no_question, "engine/x.py", '"""The KV pool. What is it?"""\n'),
        (machine_path, "docs/x.md", "see `/" + "work/main/engine`"),
        (machine_path, "Makefile", "cd /" + "root"),
        (registry_host, "README.md", "pip install -i https://pypi." + "org/simple"),
    ],
)
def test_the_rule_can_fail(rule: Rule, name: str, text: str) -> None:
    assert list(rule(Path(name), text))


@pytest.mark.parametrize(
    ("rule", "name", "text"),
    [
        (too_long, "engine/x.py", "\n" * MAX_LINES),
        (no_question, "engine/x.py", '"""What does `engine.core` load\n\nand when? It loads."""\n'),
        (no_question, "tests/unit/test_x.py", "x = 1\n"),
        (machine_path, "docs/x.md", "decode/worker, /workers, $HOME/work and ../work"),
        (code_from_bytes, "engine/x.py", "import json\njson.load(file)\nstate = torch.loads\n"),
    ],
)
def test_the_rule_lets_good_files_pass(rule: Rule, name: str, text: str) -> None:
    assert not list(rule(Path(name), text))
