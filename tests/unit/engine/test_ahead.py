"""Does a step whose tokens the host has not seen compute what it would with its tokens known?"""

from typing import Any

import pytest
import torch

from engine import support
from engine.config import EngineConfig
from engine.core import TorchEngine, open_engine
from engine.forward import GatheredForward
from engine.layout import KvLayout
from engine.loading import load
from engine.pool import KvPool
from engine.port import Row, SampleSpec
from runtime.params import SamplingParams
from tests.support import tiny_models
from tests.support.ahead import PAGES, STEPS, ahead, known, tokens

PARAMS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "seeded": {"temperature": 0.9, "top_p": 0.9, "seed": 7, "logprobs": 2, "min_tokens": 4, "logit_bias": {9: 1.5}},
}
GREEDY = SamplingParams(temperature=0.0)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_models.save(tiny_models.CONFIGS["llama"](), tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def engine(directory: str) -> TorchEngine:
    return open_engine(EngineConfig(model=directory, page_tokens=4, pool_pages=PAGES), lambda *_: None)


@pytest.mark.parametrize("name", PARAMS)
def test_steps_begun_ahead_choose_the_same_tokens(engine: TorchEngine, name: str) -> None:
    params = SamplingParams(**PARAMS[name])
    expected = known(engine, params)
    assert ahead(engine, params) == expected
    assert len({tuple(tokens(step)) for step in expected}) > STEPS // 2, "tokens that are all alike show nothing"


def test_a_cpu_does_not_run_ahead(engine: TorchEngine) -> None:
    assert not engine.runs_ahead


def test_a_row_follows_only_what_is_there(engine: TorchEngine) -> None:
    engine.forward([Row([5, 6], 0, range(2), SampleSpec(GREEDY, 0, (), ()))])
    for place in (1, -1):
        with pytest.raises(ValueError, match=f"follows sample {place} of a step that had 1"):
            engine.begin([Row([0], 2, range(2), SampleSpec(GREEDY, 1, (), ()), follows=place)])
    reading = SampleSpec(SamplingParams(temperature=0.0, presence_penalty=0.1), 1, (), ())
    with pytest.raises(ValueError, match="reads its output"):
        engine.begin([Row([0], 2, range(2), reading, follows=0)])


def test_a_forward_without_a_step_before_it_follows_nothing(directory: str) -> None:
    cpu = torch.device("cpu")
    model = load(directory, "float32", cpu, "auto", 0, lambda *_: None)
    with torch.inference_mode():
        geometry = support.probe(model)
        layout = KvLayout(3, 4, geometry.kv_heads, geometry.head_dim, "float32", 4, "tiny")
        forward = GatheredForward(model, geometry.windows, KvPool(layout, 4, cpu))
        with pytest.raises(ValueError, match="a step that there was not"):
            forward.logits([Row([0], 0, [1], None, follows=0)])
