"""Is what comes out of a cell exactly what the model says in one process?

The oracle is `transformers` itself: `model.generate`, greedy, float32. Prompts are pieces of English text, so that the
model is in its element; their lengths lie on and around the borders of pages and prefill chunks.
"""

import asyncio
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from launch.cell import RunningCell
from launch.client import StreamingClient
from launch.config import CellOptions
from runtime.params import SamplingParams
from tests.support.processes import all_pages_back, cell

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PAGE = 16
CHUNK = 128
LENGTHS = [1, 2, 3, 7, PAGE - 1, PAGE, PAGE + 1, 31, 33, 64, 100, CHUNK - 1, CHUNK, CHUNK + 1, 150, 200]
LENGTHS += [2 * CHUNK - 1, 2 * CHUNK, 2 * CHUNK + 1, 300, 400, 3000]
NEW_TOKENS = 8
BFLOAT16_EPSILON = 0.35
"""Logits of this model reach about 30; bfloat16 has 8 bits of mantissa, so one rounding of such a logit is 0.06 to
0.12, and two computations that order their sums differently differ by a few of these."""


def prompts(directory: Path) -> list[list[int]]:
    text = (Path(__file__).parents[2] / "LICENSE").read_text() * 3
    ids = Tokenizer.from_file(str(directory / "tokenizer.json")).encode(text).ids
    return [ids[37 * i : 37 * i + length] for i, length in enumerate(LENGTHS)]


@cache
def reference(directory: Path, dtype: torch.dtype) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    return model


@cache
def generated(directory: Path, prompt: tuple[int, ...]) -> list[int]:
    """What `model.generate` answers to a prompt."""
    ids = torch.tensor([prompt])
    mask = torch.ones_like(ids)
    generate: Any = reference(directory, torch.float32).generate  # transformers types it as a Tensor
    out = generate(ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)
    answer: list[int] = out[0, len(prompt) :].tolist()
    return answer


def expected(directory: Path) -> list[list[int]]:
    return [generated(directory, tuple(prompt)) for prompt in prompts(directory)]


def options(directory: Path, prefill: int, decode: int, **changes: object) -> CellOptions:
    settings = {"prefill": prefill, "decode": decode, "page_tokens": PAGE, "chunk_tokens": CHUNK, **changes}
    return CellOptions(model_dir=str(directory), model_name="model", **settings)  # type: ignore[arg-type]  # a test's


GREEDY = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS)
SEEDED = SamplingParams(temperature=0.9, top_p=0.95, seed=1234, max_tokens=NEW_TOKENS)


async def answers(
    running: RunningCell, prompts: list[list[int]], sampling: SamplingParams, at_once: int
) -> list[list[int]]:
    """The tokens for each prompt, with `at_once` requests in flight."""
    gate = asyncio.Semaphore(at_once)

    async def one(client: StreamingClient, prompt: list[int]) -> list[int]:
        async with gate:
            return (await client.generate(prompt_token_ids=prompt, sampling=sampling).finish()).token_ids

    async with StreamingClient(running.endpoint) as client:
        found = await asyncio.gather(*(one(client, prompt) for prompt in prompts))
        await all_pages_back(client)
    return found


@dataclass(frozen=True)
class Served:
    """What one cell answered, by the number of requests in flight; a cell is started once for all tests of it.

    A request alone meets one worker of each role whatever the cell, so long ones are alone in the smallest cell only.
    """

    greedy: dict[int, list[list[int]]]  # at one in flight perhaps only the first prompts
    seeded: dict[int, list[list[int]]]


SEEDED_WITH = {(1, 1): (1, 8), (2, 2): (8,), (1, 3): ()}


@cache
def served(directory: Path, prefill: int, decode: int) -> Served:
    everything = prompts(directory)
    some = [prompt for prompt in everything if len(prompt) <= CHUNK + 1]

    async def run() -> Served:
        async with cell(options(directory, prefill, decode)) as running:
            return Served(
                greedy={
                    1: await answers(running, everything if (prefill, decode) == (1, 1) else some, GREEDY, 1),
                    8: await answers(running, everything, GREEDY, 8),
                },
                seeded={n: await answers(running, some, SEEDED, n) for n in SEEDED_WITH[prefill, decode]},
            )

    return asyncio.run(run())


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("prefill", "decode"), [(1, 1), (2, 2), (1, 3)])
def test_greedy_float32_equals_generate(smollm2: Path, prefill: int, decode: int) -> None:
    """Alone and with 8 in flight, token for token."""
    found = served(smollm2, prefill, decode)
    for at_once, answered in found.greedy.items():
        assert len(answered) >= LENGTHS.index(150)
        for length, got, want in zip(LENGTHS, answered, expected(smollm2), strict=False):
            assert got == want, f"prompt of {length} tokens, {at_once} in flight"


MIXED_CHUNK = 48
BESIDE_STREAMS = [1, PAGE + 1, MIXED_CHUNK, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 300]


@pytest.mark.parametrize("shape", [{"aggregated": 1}, {"local_prefill_tokens": CHUNK}], ids=["aggregated", "local"])
def test_prompts_computed_in_the_steps_of_other_streams_equal_generate(smollm2: Path, shape: dict[str, int]) -> None:
    """All at once: chunks and decode rows share steps, and nothing of it shows."""
    text = prompts(smollm2)[-1]
    some = [text[11 * i :][:length] for i, length in enumerate(BESIDE_STREAMS)]

    async def run() -> list[list[int]]:
        async with cell(options(smollm2, 1, 1, mixed_chunk_tokens=MIXED_CHUNK, **shape)) as running:
            return await answers(running, some, GREEDY, 8)

    for prompt, found in zip(some, asyncio.run(run()), strict=True):
        assert found == generated(smollm2, tuple(prompt)), f"prompt of {len(prompt)} tokens"


@pytest.mark.timeout(400)
def test_the_same_seed_draws_the_same_tokens_everywhere(smollm2: Path) -> None:
    """Alone, among 8, and on a 2P2D cell."""
    alone = served(smollm2, 1, 1).seeded[1]
    assert served(smollm2, 1, 1).seeded[8] == alone
    assert served(smollm2, 2, 2).seeded[8] == alone
    greedy = [want for want, length in zip(expected(smollm2), LENGTHS, strict=True) if length <= CHUNK + 1]
    assert alone != greedy  # it did sample


def test_bfloat16_stays_within_epsilon_of_the_best_logit(smollm2: Path) -> None:
    """Near-ties may fall either way in bfloat16; nothing but a near-tie may."""
    short = [prompt for prompt in prompts(smollm2) if len(prompt) <= 2 * CHUNK]
    model = reference(smollm2, torch.bfloat16)

    async def run() -> list[list[int]]:
        async with cell(options(smollm2, 1, 1, dtype="bfloat16")) as running:
            return await answers(running, short, GREEDY, 8)

    for prompt, tokens in zip(short, asyncio.run(run()), strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].float()
        chosen = logits[torch.arange(len(tokens)), torch.tensor(tokens)]
        assert (logits.max(dim=1).values - chosen).max() <= BFLOAT16_EPSILON
