"""Does a grammar hold in a real engine's mixed batches, on both sides of a hand-off, and does a bad row stay alone?"""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from coordinator import structured
from engine import reference
from engine.config import EngineConfig
from engine.core import TorchEngine, open_engine
from engine.grammar import GrammarCompiler
from engine.loading import load
from engine.port import Matcher, Row, RowFailed, SampleSpec
from runtime.params import SamplingParams
from runtime.tokens import SampledToken
from tests.support import tiny_models, tiny_tokenizer

VOCAB, EOS, PAGES = 420, 2, 12
GRAMMARS = [
    structured.json_schema({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}),
    structured.regex("(the|[a-z]{3}) [0-9]{1,4}"),
    structured.choice(["prefill worker", "decode worker"]),
]
TOKENS = 14


def silent(stage: str, fraction: float | None) -> None:
    pass


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_models.CONFIGS["llama"]()
    assert isinstance(config, LlamaConfig)
    config.vocab_size = VOCAB
    path = tiny_models.save(config, tmp_path_factory.mktemp("llama"))
    tiny_tokenizer.byte_level().save(str(path / "tokenizer.json"))
    return path


def opened(directory: Path) -> TorchEngine:
    return open_engine(EngineConfig(model=str(directory), page_tokens=4, pool_pages=PAGES * 8), silent)


@pytest.fixture(scope="module")
def engine(directory: Path) -> TorchEngine:
    return opened(directory)


def params(seed: int) -> SamplingParams:
    return SamplingParams(temperature=1.0, seed=seed)


def prompt(number: int) -> list[int]:
    return random.Random(number).choices(range(4, VOCAB), k=5 + number)


def generate(engine: TorchEngine, grammars: Sequence[str | None]) -> list[list[int]]:
    """All requests in one batch, each with matchers that are new at token 2, as after a hand-off."""
    outputs: list[list[int]] = [[] for _ in grammars]
    matchers: list[Matcher | None] = []
    for index in range(TOKENS):
        if index < 2:
            matchers = [engine.matcher(grammar) if grammar is not None else None for grammar in grammars]
        open_ = [k for k, output in enumerate(outputs) if not output or output[-1] != EOS]
        rows = []
        for k in open_:
            feed = prompt(k) if index == 0 else outputs[k][-1:]
            start = 0 if index == 0 else len(prompt(k)) + index - 1
            spec = SampleSpec(params(k), index, prompt(k), tuple(outputs[k]), matchers[k])
            rows.append(Row(feed, start, range(k * PAGES, (k + 1) * PAGES), spec))
        for k, result in zip(open_, engine.forward(rows) if rows else [], strict=True):
            assert isinstance(result, SampledToken)
            outputs[k].append(result.token_id)
    return outputs


def test_answers_in_a_mixed_batch_equal_those_of_one_process(directory: Path, engine: TorchEngine) -> None:
    grammars = [GRAMMARS[0], None, GRAMMARS[1], None, GRAMMARS[2], GRAMMARS[0]]
    model = load(str(directory), "float32", torch.device("cpu"), "auto", 0, silent)
    compiler = GrammarCompiler(directory / "tokenizer.json", VOCAB, (EOS,))
    wanted = [
        reference.generate(
            model, prompt(k), params(k), TOKENS, (EOS,), compiler.matcher(grammar) if grammar is not None else None
        )
        for k, grammar in enumerate(grammars)
    ]
    found = generate(engine, grammars)
    assert found == wanted
    without = generate(engine, [None] * len(grammars))
    assert [found[1], found[3]] == [without[1], without[3]]
    assert found[0] != without[0]


def test_a_row_without_a_way_on_fails_alone(engine: TorchEngine) -> None:
    matchers = [
        engine.matcher(GRAMMARS[1]),
        engine.matcher("start: missing"),
        engine.matcher(f"start: <[{VOCAB}]>"),
        None,
    ]
    rows = [
        Row(prompt(k), 0, range(k * PAGES, (k + 1) * PAGES), SampleSpec(params(k), 0, prompt(k), (), matcher))
        for k, matcher in enumerate(matchers)
    ]
    chunk = Row(prompt(5), 0, range(60, 72), None)
    good, unbuilt, no_token, nothing, plain = engine.forward([*rows[:3], chunk, rows[3]])
    assert isinstance(good, SampledToken)
    assert unbuilt == RowFailed("the grammar cannot be built")
    assert no_token == RowFailed("after 0 tokens no token of the model fits the grammar")
    assert nothing is None
    assert [plain] == engine.forward(rows[3:])


@pytest.mark.parametrize(("content", "words"), [(None, "no tokenizer.json"), ("{}", "cannot read the tokenizer")])
def test_a_model_without_a_usable_tokenizer_is_served_without_grammars(
    tmp_path: Path, content: str | None, words: str
) -> None:
    tiny_models.save(tiny_models.CONFIGS["llama"](), tmp_path)
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    engine = opened(tmp_path)
    spec = SampleSpec(params(0), 0, (5,), (), engine.matcher(GRAMMARS[0]))
    failed, token = engine.forward([Row((5,), 0, (0,), spec), Row((5,), 0, (1,), SampleSpec(params(0), 0, (5,), ()))])
    assert isinstance(failed, RowFailed)
    assert words in failed.reason
    assert isinstance(token, SampledToken)
