"""Does whoever asks survive a grammar that crashes or hangs whoever builds it?"""

import os
import signal
from pathlib import Path

import pytest

from coordinator import structured
from engine.grammar_trial import GrammarTrial
from tests.support.processes import processes_of
from tests.support.tiny_tokenizer import byte_level

GOOD = "start: /a+/"
CHAIN = "start: a0\n" + "".join(f"a{i}: a{i + 1}\n" for i in range(10_000)) + 'a10000: "x"'
INTERSECTION = "start: A\nA: " + " & ".join(f"/.*{i}.*/" for i in range(200))


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> GrammarTrial:
    path = tmp_path_factory.mktemp("trial") / "tokenizer.json"
    byte_level().save(str(path))
    return GrammarTrial(path, 421, (1,))


def test_a_good_grammar_passes_and_a_bad_one_is_explained(trial: GrammarTrial) -> None:
    assert trial.check(GOOD) is None
    assert trial.check(structured.choice(["東京", '"\n'])) is None
    assert "missing" in (trial.check("start: missing") or "")


def test_a_grammar_that_overflows_the_stack_is_refused(trial: GrammarTrial) -> None:
    assert "nested too deeply" in (trial.check(CHAIN) or "")
    assert trial.check(GOOD) is None


def test_a_chain_of_references_in_a_schema_is_refused(trial: GrammarTrial) -> None:
    links = {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(4000)}
    schema = {"$defs": {**links, "a4000": {"type": "string"}}, "$ref": "#/$defs/a0"}
    assert "nested too deeply" in (trial.check(structured.json_schema(schema)) or "")


def test_a_grammar_that_never_gets_built_is_refused(trial: GrammarTrial) -> None:
    assert "takes more than" in (trial.check(INTERSECTION) or "")
    assert trial.check(GOOD) is None


def test_a_process_that_was_killed_is_started_again(trial: GrammarTrial) -> None:
    assert trial.check(GOOD) is None
    (pid,) = processes_of(" ".join(trial.arguments))
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert trial.check(GOOD) is None


def test_the_process_ends_with_its_owner(tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    trial = GrammarTrial(tmp_path / "tokenizer.json", 421, (1,))
    assert trial.check(GOOD) is None
    assert processes_of(str(tmp_path))
    del trial
    assert not processes_of(str(tmp_path))


def test_without_a_usable_tokenizer_every_grammar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    trial = GrammarTrial(tmp_path / "tokenizer.json", 421, (1,))
    assert "llguidance cannot read the tokenizer" in (trial.check(GOOD) or "")
    assert not processes_of(str(tmp_path))
