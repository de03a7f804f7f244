"""Does the engine answer what the model itself would answer, however its requests are cut, mixed and placed?

The oracle is `transformers`' own `generate`, one request at a time (design invariant 5), greedy and in float32: every
token is equal. In bfloat16 rounding may decide between two tokens; each one chosen is then among the reference's best.
"""

import ctypes
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import reference
from engine.config import EngineConfig
from engine.core import TorchEngine, open_engine
from engine.loading import load
from engine.pool import UnusableMemory
from engine.port import EnginePort, Row, SampleSpec
from runtime.params import SamplingParams
from runtime.tokens import SampledToken
from tests.support import tiny_models

PAGE_TOKENS = 4
NEW_TOKENS = 10
BFLOAT16_EPSILON = 0.05
"""In units of the spread (standard deviation) of the reference's logits."""

GREEDY = SamplingParams(temperature=0.0)
ModelDir = Callable[[str], str]


def silent(stage: str, fraction: float | None) -> None:
    pass


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> ModelDir:
    saved: dict[str, str] = {}

    def get(name: str) -> str:
        if name not in saved:
            saved[name] = str(tiny_models.save(tiny_models.CONFIGS[name](), tmp_path_factory.mktemp(name)))
        return saved[name]

    return get


def open_tiny(directory: str, **settings: Any) -> TorchEngine:
    settings = {"page_tokens": PAGE_TOKENS, "pool_pages": 120, **settings}
    return open_engine(EngineConfig(model=directory, **settings), silent)


def prompts(lengths: Sequence[int]) -> list[list[int]]:
    source = random.Random(0)
    return [[source.randrange(3, tiny_models.VOCAB_SIZE) for _ in range(n)] for n in lengths]


@dataclass
class Generation:
    """One request as a worker would feed it: its prompt in chunks, then token by token."""

    prompt: list[int]
    pages: list[int]
    sampling: SamplingParams = GREEDY
    fed: int = 0
    output: list[int] = field(default_factory=list)

    def row(self, chunk: int) -> Row:
        tokens = self.prompt + self.output
        feed = tokens[self.fed : self.fed + chunk]
        is_last = self.fed + len(feed) == len(tokens)
        spec = SampleSpec(self.sampling, len(self.output), self.prompt, tuple(self.output)) if is_last else None
        return Row(feed, self.fed, self.pages, spec)


def step(engine: TorchEngine, generations: Sequence[Generation], chunk: int) -> None:
    rows = [generation.row(chunk) for generation in generations]
    for generation, row, token in zip(generations, rows, engine.forward(rows), strict=True):
        generation.fed += len(row.token_ids)
        assert isinstance(token, SampledToken) == (row.sample is not None)
        if isinstance(token, SampledToken):
            generation.output.append(token.token_id)


def scattered(
    engine: TorchEngine, requests: Sequence[list[int]], seed: int, sampling: SamplingParams = GREEDY
) -> list[Generation]:
    free = list(range(engine.total_pages))
    random.Random(seed).shuffle(free)
    counts = [engine.layout.pages_for(len(prompt) + NEW_TOKENS) for prompt in requests]
    return [
        Generation(prompt, [free.pop() for _ in range(n)], sampling) for prompt, n in zip(requests, counts, strict=True)
    ]


def drive(engine: TorchEngine, generations: Sequence[Generation], chunk: int, seed: int = 0) -> list[list[int]]:
    """One request more joins at each step, so chunks and decode rows mix, in any order."""
    source, joined = random.Random(seed), 0
    while any(len(g.output) < NEW_TOKENS for g in generations):
        joined += 1
        active = [g for g in generations[:joined] if len(g.output) < NEW_TOKENS]
        step(engine, source.sample(active, len(active)), chunk)
    return [g.output for g in generations]


@pytest.mark.parametrize("name", tiny_models.CONFIGS)
def test_greedy_tokens_equal_generate(name: str, model_dir: ModelDir) -> None:
    directory = model_dir(name)
    requests = prompts([1, PAGE_TOKENS - 1, PAGE_TOKENS, PAGE_TOKENS + 1, 23, 24, 25, 41])
    model = load(directory, "float32", torch.device("cpu"), "auto", 0, silent)
    expected = [reference.generate_greedy(model, prompt, NEW_TOKENS) for prompt in requests]
    assert len(set(map(tuple, expected))) == len(requests), "a model that always says the same shows nothing"
    engine = open_tiny(directory)
    for chunk in (PAGE_TOKENS - 1, PAGE_TOKENS, 7, 64):
        assert drive(engine, scattered(engine, requests, seed=chunk), chunk) == expected


@pytest.mark.parametrize("name", ["llama", "mistral_window", "gemma2_softcap"])
def test_bfloat16_tokens_are_among_the_references_best(name: str, model_dir: ModelDir) -> None:
    directory = model_dir(name)
    requests = prompts([5, 24, 33])
    engine = open_tiny(directory, dtype="bfloat16")
    model = load(directory, "bfloat16", torch.device("cpu"), "auto", 0, silent)
    for prompt, output in zip(requests, drive(engine, scattered(engine, requests, seed=1), chunk=9), strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + output])).logits[0, len(prompt) - 1 : -1].float()
        chosen = logits.gather(1, torch.tensor(output)[:, None])[:, 0]
        assert ((logits.amax(1) - chosen) / logits.std(1)).max() < BFLOAT16_EPSILON


def test_sampled_tokens_equal_the_references(model_dir: ModelDir) -> None:
    directory = model_dir("llama")
    requests = prompts([5, 24, 33])
    params = SamplingParams(temperature=0.9, top_p=0.9, frequency_penalty=0.5, seed=7)
    model = load(directory, "float32", torch.device("cpu"), "auto", 0, silent)
    expected = [reference.generate(model, prompt, params, NEW_TOKENS) for prompt in requests]
    assert expected != [reference.generate(model, prompt, GREEDY, NEW_TOKENS) for prompt in requests]
    engine = open_tiny(directory)
    assert drive(engine, scattered(engine, requests, seed=2, sampling=params), chunk=7) == expected


@pytest.mark.parametrize("name", ["llama", "mistral_window", "qwen3_moe"])
def test_a_row_does_not_depend_on_the_others(name: str, model_dir: ModelDir) -> None:
    """Design invariant 6: log-probabilities alone and in company agree to rounding."""
    engine = open_tiny(model_dir(name))
    spec = SampleSpec(SamplingParams(temperature=0.0, logprobs=20), 0, (), ())
    one, two, three = prompts([30, 17, 3])
    others = [Row(two, 0, range(40, 50), spec), Row(three, 0, range(60, 61), spec)]
    for mine in (Row(one[:29], 0, range(10), spec), Row(one[29:], 29, range(10), spec)):
        (alone,) = engine.forward([mine])
        _, company, _ = engine.forward([others[0], mine, others[1]])
        assert isinstance(alone, SampledToken)
        assert isinstance(company, SampledToken)
        assert alone.logprobs is not None
        assert company.logprobs is not None
        assert dict(company.logprobs.top) == pytest.approx(dict(alone.logprobs.top), abs=1e-5)


def test_decode_continues_on_pages_that_another_engine_filled(model_dir: ModelDir) -> None:
    """The hand-off, by memcpy: digests agree, and the tokens are those of one process."""
    directory = model_dir("qwen2_bias")
    (prompt,) = prompts([22])
    prefill, decode = open_tiny(directory), open_tiny(directory)
    whole = drive(prefill, scattered(prefill, [prompt], seed=3), chunk=64)
    sender, receiver = scattered(prefill, [prompt], seed=4)[0], scattered(decode, [prompt], seed=5)[0]
    step(prefill, [sender], chunk=64)
    filled = decode.layout.pages_for(len(prompt))
    for source, target in zip(sender.pages[:filled], receiver.pages[:filled], strict=True):
        (origin,), (destination,) = prefill.regions([source]), decode.regions([target])
        ctypes.memmove(destination.address, origin.address, origin.nbytes)
    assert decode.digest(receiver.pages[:filled]) == prefill.digest(sender.pages[:filled])
    receiver.output, receiver.fed = sender.output, sender.fed
    assert drive(decode, [receiver], chunk=1) == whole


def test_reused_pages_hold_nothing_of_their_last_request(model_dir: ModelDir) -> None:
    engine = open_tiny(model_dir("llama"))
    first, second = prompts([40, 22])
    pages = list(range(20))
    engine.forward([Row(second, 0, pages, None)])
    clean = engine.digest(pages[:6])
    engine.forward([Row(first, 0, pages, None)])
    engine.forward([Row(second, 0, pages, None)])
    assert engine.digest(pages[:6]) == clean


def test_what_it_says_of_itself(model_dir: ModelDir) -> None:
    directory = model_dir("llama")
    port: EnginePort = open_tiny(directory, pool_pages=9)
    assert port.total_pages == 9
    assert port.model_name == Path(directory).name
    assert port.vocab_size == tiny_models.VOCAB_SIZE
    assert port.max_model_len == 512
    assert port.eos_token_ids == (2,)
    assert port.layout.page_shape == (3, 2, PAGE_TOKENS, 2, 8)
    assert port.memcpy_gigabytes_per_s() > 0
    assert open_tiny(directory, max_model_len=100).max_model_len == 100
    assert open_tiny(directory, max_model_len=1000).max_model_len == 512


def test_opening_says_what_it_does_and_writes_nothing(model_dir: ModelDir, capfd: pytest.CaptureFixture[str]) -> None:
    stages: list[str] = []
    cfg = EngineConfig(model=model_dir("gemma2_softcap"), pool_pages=8)
    capfd.readouterr()
    open_engine(cfg, lambda stage, _: stages.append(stage))
    assert capfd.readouterr() == ("", "")
    assert stages == [
        "reading the configuration",
        "loading weights",
        "checking paged attention against the model's own",
        "allocating pages",
        "reading the tokenizer",
        "warming up",
    ]


def test_no_rows_are_no_tokens(model_dir: ModelDir) -> None:
    assert open_tiny(model_dir("llama")).forward([]) == []


def test_pool_bytes_are_rounded_down_to_pages(model_dir: ModelDir) -> None:
    directory = model_dir("llama")
    page_bytes = 3 * 2 * PAGE_TOKENS * 2 * 8 * 4
    assert open_tiny(directory, pool_pages=None, pool_bytes=5 * page_bytes - 1).total_pages == 4
    with pytest.raises(UnusableMemory, match="holds no page"):
        open_tiny(directory, pool_pages=None, pool_bytes=page_bytes - 1)


def test_random_weights_have_a_fingerprint_of_their_own(model_dir: ModelDir) -> None:
    directory = model_dir("llama")
    real, one, two = (
        open_tiny(directory),
        open_tiny(directory, load_format="dummy", seed=1),
        open_tiny(directory, load_format="dummy", seed=2),
    )
    assert len({engine.layout.fingerprint for engine in (real, one, two)}) == 3
    again = open_tiny(directory, load_format="dummy", seed=1)
    assert again.layout.fingerprint == one.layout.fingerprint
    (prompt,) = prompts([20])
    outputs = [drive(engine, scattered(engine, [prompt], seed=6), chunk=64) for engine in (real, one, two, again)]
    assert outputs[1] == outputs[3]
    assert len({tuple(output) for (output,) in outputs}) == 3


def test_a_row_without_room_is_a_mistake(model_dir: ModelDir) -> None:
    engine = open_tiny(model_dir("llama"))
    with pytest.raises(ValueError, match="do not fit"):
        engine.forward([Row([1] * (PAGE_TOKENS + 1), 0, (0,), None)])
