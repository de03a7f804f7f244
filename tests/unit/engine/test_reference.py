"""Is the oracle right? It must agree with transformers' own `generate`."""

from pathlib import Path

import pytest
import torch

from engine import reference
from engine.loading import load
from runtime.params import SamplingParams
from tests.support import tiny_models

PROMPT = [5, 17, 200, 33, 90, 4, 61, 8, 140, 22, 75, 6, 19]
GREEDY = SamplingParams(temperature=0.0)


@pytest.mark.parametrize("name", ["llama", "mistral_window"])
def test_greedy_is_generate(name: str, tmp_path: Path) -> None:
    directory = tiny_models.save(tiny_models.CONFIGS[name](), tmp_path)
    model = load(str(directory), "float32", torch.device("cpu"), "auto", 0, lambda *_: None)
    greedy = reference.generate_greedy(model, PROMPT, 12)
    assert len(greedy) == 12
    assert reference.generate(model, PROMPT, GREEDY, 12) == greedy
    stop = greedy[5]
    assert reference.generate(model, PROMPT, GREEDY, 12, (stop,)) == greedy[: greedy.index(stop) + 1]
