"""Does every answer keep to its grammar from token 1 on, on both sides of the hand-off, and does a bad end stay alone?

A tiny random model, real processes, real UCX. Its vocabulary lacks the last token of its tokenizer, so a grammar that
demands that token passes the coordinator and fails where the mask is made.
"""

import asyncio
import re
from pathlib import Path

import pytest
from transformers import LlamaConfig

from coordinator import structured
from engine.loading import quiet_transformers
from launch.client import RequestFailed, StreamingClient
from launch.config import CellOptions
from runtime.params import FinishReason, SamplingParams
from tests.support import tiny_models, tiny_tokenizer
from tests.support.processes import all_pages_back, cell, processes_of
from tests.support.schema import SCHEMA, is_compact_json_of_the_schema

pytestmark = pytest.mark.e2e

VOCAB = 420
OPTIONS = ["yes", "no", "東京"]
REGEX = r"[a-c]{2,5}-\d+x"
GRAMMARS = {
    "schema": structured.json_schema(SCHEMA),
    "regex": structured.regex(REGEX),
    "choice": structured.choice(OPTIONS),
    "gbnf": structured.grammar('root ::= "(" root ")" | [0-9]'),
}
FAILS_AT_TOKEN_1 = f"start: <[{VOCAB}]>"
FAILS_LATER = 'start: "b" A\nA: /c/ & /d/'


def is_valid(name: str, text: str) -> bool:
    match name:
        case "schema":
            return is_compact_json_of_the_schema(text)
        case "regex":
            return re.fullmatch(REGEX, text) is not None
        case "choice":
            return text in OPTIONS
        case _:
            depth = text.count("(")
            return re.fullmatch(rf"\({{{depth}}}\d\){{{depth}}}", text) is not None


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    config = tiny_models.CONFIGS["llama"]()
    assert isinstance(config, LlamaConfig)
    config.vocab_size = VOCAB
    with quiet_transformers():
        tiny_models.save(config, directory)
    tiny_tokenizer.byte_level().save(str(directory / "tokenizer.json"))
    return directory


def sampling(grammar: str | None, seed: int, max_tokens: int = 120) -> SamplingParams:
    return SamplingParams(temperature=1.0, seed=seed, max_tokens=max_tokens, grammar=grammar)


async def keep_to_their_grammar_alone_and_among_others(client: StreamingClient) -> None:
    async def answer(grammar: str | None, seed: int) -> tuple[list[int], str, object]:
        prompt = list(range(10, 17 + seed))
        done = await client.generate(prompt_token_ids=prompt, sampling=sampling(grammar, seed)).finish()
        return done.token_ids, done.text, done.finish_reason

    asks = [(name, grammar, seed) for seed in range(2) for name, grammar in GRAMMARS.items()]
    alone = [await answer(grammar, seed) for _, grammar, seed in asks]
    plain = [await answer(None, seed) for seed in range(2)]
    for (name, _, _), (_, text, reason) in zip(asks, alone, strict=True):
        assert reason is FinishReason.STOP or name == "gbnf"  # whose brackets need not close in time
        assert reason is not FinishReason.STOP or is_valid(name, text), f"{name}: {text!r}"
    together = await asyncio.gather(
        *(answer(grammar, seed) for _, grammar, seed in asks), *(answer(None, s) for s in range(2))
    )
    assert together == alone + plain
    bad = client.generate(prompt_token_ids=[5], sampling=sampling("start: missing", 0))
    with pytest.raises(RequestFailed, match="missing"):
        await bad.finish()
    # Token 1 alone, which has no hand-off, keeps to the grammar as well.
    for seed in range(5):
        one = client.generate(prompt_token_ids=[5], sampling=sampling(GRAMMARS["regex"], seed, max_tokens=1))
        assert re.fullmatch("[a-c]+", (await one.finish()).text)


async def a_grammar_that_fails_ends_its_request_only(client: StreamingClient) -> None:
    async def fails(grammar: str, max_tokens: int = 120) -> str:
        with pytest.raises(RequestFailed) as caught:
            await client.generate(
                prompt_token_ids=list(range(10, 50)), sampling=sampling(grammar, 0, max_tokens)
            ).finish()
        return str(caught.value)

    other = [client.generate(prompt_token_ids=[5, 6, s], sampling=sampling(None, s)).finish() for s in range(4)]
    others = asyncio.gather(*other)
    first, first_only, later = await asyncio.gather(
        fails(FAILS_AT_TOKEN_1), fails(FAILS_AT_TOKEN_1, max_tokens=1), fails(FAILS_LATER)
    )
    assert "after 0 tokens no token of the model fits the grammar" in first
    assert "after 0 tokens no token of the model fits the grammar" in first_only
    assert "after 1 tokens the grammar cannot be followed" in later
    assert all(done.finish_reason is not None and done.token_ids for done in await others)
    again = await client.generate(prompt_token_ids=[5], sampling=sampling(GRAMMARS["choice"], 0)).finish()
    assert again.text in OPTIONS


@pytest.mark.parametrize("aggregated", [0, 1])
def test_grammars_in_a_cell(model: Path, aggregated: int) -> None:
    """With a hand-off, and with token 1 from the worker that decodes."""
    options = CellOptions(
        model_dir=str(model),
        model_name="tiny",
        aggregated=aggregated,
        page_tokens=8,
        chunk_tokens=24,
        decode_kv_tokens=8192,
    )

    async def run() -> None:
        async with cell(options) as running, StreamingClient(running.endpoint) as client:
            await keep_to_their_grammar_alone_and_among_others(client)
            await a_grammar_that_fails_ends_its_request_only(client)
            await all_pages_back(client)
            assert processes_of(str(model / "tokenizer.json"))  # where grammars are tried
        assert not processes_of(str(model / "tokenizer.json"))

    asyncio.run(run())
