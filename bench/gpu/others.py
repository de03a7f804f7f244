"""How are the ways of transformers itself to decode measured beside ours?

The same shape, type and lengths on the same GPU. A run that makes more tokens less one that makes few is decoding
alone: prompts, set-up and compilation are in both. What we make in the same time is `bench.gpu.steps`.
"""

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import PreTrainedModel

from bench.gpu import shapes
from bench.gpu.beside import OURS
from bench.gpu.parts import Settings
from bench.rows import Row, summarise
from engine.loading import load

ROWS = (1, 32, 64)
CONTEXT = 1024
_FEW, _MORE = 8, 72
_REPETITIONS = 2

Generate = Callable[[list[list[int]], int], int]
"""Answers prompts with so many tokens each; returns how many it made in all."""


def random_model(settings: Settings) -> PreTrainedModel:
    with TemporaryDirectory() as directory:
        model = shapes.write(settings.shape, Path(directory))
        device = torch.device(settings.device)
        return load(str(model), "bfloat16", device, "dummy", 0, lambda stage, _: print(stage, flush=True))


def measure(name: str, note: str, settings: Settings, rows: int, generate: Generate) -> Row:
    """Tokens per second of decoding.

    Raises:
        AssertionError: it made another number of tokens than it was asked for.
    """
    prompts = torch.randint(0, settings.shape.vocab, (rows, CONTEXT)).tolist()
    for tokens in (_FEW, _MORE):  # compiles
        _seconds(generate, prompts, tokens)
    rates = []
    for _ in range(_REPETITIONS):
        few_s, more_s = (_seconds(generate, prompts, tokens) for tokens in (_FEW, _MORE))
        rates.append(rows * (_MORE - _FEW) / (more_s - few_s))
    return summarise(name, OURS, rates, unit="tokens/s", limited_by=note, parameters={"rows": rows, "context": CONTEXT})


def _seconds(generate: Generate, prompts: list[list[int]], tokens: int) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    made = generate(prompts, tokens)
    torch.cuda.synchronize()
    if made != len(prompts) * tokens:
        raise AssertionError(f"it made {made} tokens for {len(prompts)} prompts, {tokens} for each were asked for")
    return time.perf_counter() - start
