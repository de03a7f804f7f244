"""Does a step whose tokens only the device knows compute what it would with its tokens known?

As tests/unit/engine/test_ahead.py, with the forward of a CUDA device: on one with its graphs, else in Triton's
interpreter with steps that are called again.
"""

from collections.abc import Callable

import pytest
import torch

from engine import support
from engine.core import TorchEngine
from engine.cuda.forward import CudaForward, GraphSettings
from engine.cuda.fuse import fuse
from engine.cuda.graphs import cuda_capture
from engine.layout import KvLayout
from engine.loading import load
from engine.pool import KvPool
from runtime.params import SamplingParams
from tests.support import tiny_models
from tests.support.ahead import PAGES, ahead, known, tokens

STEPS = 5


def again(run: Callable[[], None]) -> Callable[[], None]:
    return run


def test_steps_begun_ahead_choose_the_same_tokens(
    device: torch.device, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Steps of two rows are replayed; that of three is larger than the graphs and runs eagerly."""
    config = tiny_models.CONFIGS["llama"]()
    config.num_hidden_layers = 1
    directory = tiny_models.save(config, tmp_path_factory.mktemp("llama"))
    model = load(str(directory), "float32", device, "auto", 0, lambda *_: None)
    is_cuda = device.type == "cuda"
    settings = GraphSettings((1, 2), max_model_len=64, capture=cuda_capture if is_cuda else lambda: again)
    with torch.inference_mode():
        geometry = support.probe(model)
        layout = KvLayout(1, 4, geometry.kv_heads, geometry.head_dim, "float32", 4, "tiny")
        pool = KvPool(layout, PAGES, device)
        fused = fuse(model)
        assert fused is not None
        engine = TorchEngine(model, pool, CudaForward(fused, geometry.windows, settings, pool), "tiny", 64)
    assert engine.runs_ahead == is_cuda
    params = SamplingParams(temperature=0.9, seed=7, top_k=40, logprobs=2)
    expected = known(engine, params, STEPS)
    assert ahead(engine, params, STEPS) == expected
    assert len({tuple(tokens(step)) for step in expected}) > STEPS // 2, "tokens that are all alike show nothing"
