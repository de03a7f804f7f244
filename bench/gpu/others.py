"""How are the ways of transformers itself to decode measured beside ours?

The same shape, type and lengths on the same GPU. A run that makes more tokens less one that makes few is decoding
alone: prompts, set-up and compilation are in both. What we make in the same time is `bench.gpu.steps`.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import PreTrainedModel

from bench.gpu import shapes
from bench.gpu.parts import Settings
from bench.rows import Row, summarise
from engine.loading import load

OURS = "tokens per second"
"""The quantity of `bench.gpu.steps` that theirs is compared with."""

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


def beside(rows: Sequence[Row]) -> list[Row]:
    """Pure. Ours over theirs, wherever both were measured with as many rows of as much context."""
    ours = {_size(row): row for row in rows if row.benchmark == "steps" and row.quantity == OURS}
    compared = []
    for theirs in rows:
        one = ours.get(_size(theirs)) if theirs.benchmark != "steps" and theirs.quantity == OURS else None
        if one is not None and theirs.minimum > 0:
            compared.append(
                Row(
                    benchmark="beside",
                    quantity=f"decode, ours / {theirs.benchmark}",
                    parameters=theirs.parameters,
                    unit="ratio",
                    repetitions=min(one.repetitions, theirs.repetitions),
                    median=one.median / theirs.median,
                    minimum=one.minimum / theirs.maximum,
                    maximum=one.maximum / theirs.minimum,
                    limited_by="tokens per second of the two, which ran one after the other: engine.forward here, "
                    "generate with its own scheduling there",
                )
            )
    return compared


def _size(row: Row) -> tuple[str | int | None, str | int | None]:
    return row.parameters.get("rows"), row.parameters.get("context")
