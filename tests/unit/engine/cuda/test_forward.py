"""Does the forward of a CUDA device compute what the model itself computes?

On a GPU with its graphs; without one in Triton's interpreter, with steps that are called again where a GPU replays a
graph. The oracle is the model's own forward over whole sequences.
"""

import copy
import gc
import logging
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel

from engine import attention, support
from engine.cuda import attention as cuda_attention
from engine.cuda import forward as cuda_forward
from engine.cuda import fuse
from engine.cuda.forward import CudaForward, GraphSettings, verified_forward
from engine.cuda.graphs import cuda_capture
from engine.cuda.kernels import gated, paged_decode
from engine.forward import ForwardFactory
from engine.layout import KvLayout
from engine.loading import quiet_transformers
from engine.pool import KvPool
from engine.port import Row, SampleSpec
from engine.support import UnsupportedModel
from runtime.params import SamplingParams
from tests.support import tiny_models
from tests.support.tree import ROOT

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # where Triton compiles, it takes no CPU tensors
PAGE_TOKENS = 4
SPEC = SampleSpec(SamplingParams(), 0, (), ())
FUSABLE = ("llama", "mistral_window", "qwen2_bias", "qwen3_qk_norm")

# Which sequence feeds how many tokens in each step, and whether it samples.
STEPS: tuple[tuple[tuple[int, int, bool], ...], ...] = (
    ((0, 5, False),),
    ((1, 12, True), (0, 7, True)),  # one begins, beyond the window; one goes on, past it
    ((0, 1, True), (2, 3, False), (1, 2, True)),  # decode, a chunk that begins, one that goes on
    ((2, 1, True), (0, 1, True), (1, 1, True)),  # a graph with padding
    ((1, 1, False), (3, 1, True)),  # a row that does not sample, a prompt of one token
)


def again(run: Callable[[], None]) -> Callable[[], None]:
    return run


GRAPHS = GraphSettings(sizes=(4,), max_model_len=64, capture=cuda_capture if DEVICE.type == "cuda" else lambda: again)
EAGER = GraphSettings(sizes=(), max_model_len=64)


@cache
def _random(name: str) -> PreTrainedModel:
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        auto: Any = AutoModelForCausalLM
        config: Any = tiny_models.CONFIGS[name]()
        config.num_hidden_layers = 2  # the interpreter is slow
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:2]
        model: Any = auto.from_config(config, dtype=torch.float32)
    ready: PreTrainedModel = model.eval().requires_grad_(False)
    return ready


def make(name: str) -> tuple[PreTrainedModel, KvLayout, support.Geometry]:
    """A model of its own for every test: fusing changes it."""
    model: Any = copy.deepcopy(_random(name))
    model.to(DEVICE)
    with torch.inference_mode():
        geometry = support.probe(model)
    layout = KvLayout(len(geometry.windows), PAGE_TOKENS, geometry.kv_heads, geometry.head_dim, "float32", 4, name)
    return model, layout, geometry


@torch.inference_mode()
def run_steps(layout: KvLayout, make_forward: ForwardFactory) -> list[Tensor]:
    """Each step's logits; pages are scattered, and hold NaN where nobody has written."""
    pool = KvPool(layout, 40, DEVICE)
    pool._pages.fill_(torch.nan)
    forward = make_forward(pool)
    free = torch.randperm(40, generator=torch.Generator().manual_seed(1)).tolist()
    pages, fed = [free[i::4] for i in range(4)], [0] * 4
    answers = []
    for step in STEPS:
        rows = []
        for i, count, samples in step:
            rows.append(Row(tokens(i)[fed[i] : fed[i] + count], fed[i], pages[i], SPEC if samples else None))
            fed[i] += count
        answers.append(forward.logits(rows).clone())
    return answers


def tokens(sequence: int) -> list[int]:
    return torch.randint(3, 256, (30,), generator=torch.Generator().manual_seed(sequence)).tolist()


@torch.inference_mode()
def own_logits(model: PreTrainedModel) -> list[Tensor]:
    """What `run_steps` should give, by the model's own forward."""
    model.set_attn_implementation("eager")
    whole = [model(input_ids=torch.tensor([tokens(i)], device=DEVICE)).logits[0] for i in range(4)]
    fed, answers = [0] * 4, []
    for step in STEPS:
        wanted = []
        for i, count, samples in step:
            fed[i] += count
            wanted += [whole[i][fed[i] - 1]] * samples
        answers.append(torch.stack(wanted) if wanted else whole[0][:0])
    return answers


def assert_same(given: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for step, (logits, own) in enumerate(zip(given, expected, strict=True)):
        assert logits.shape == own.shape, step
        assert torch.allclose(logits, own, rtol=1e-3, atol=1e-3 * float(expected[1].std())), step


def factory(model: PreTrainedModel, layout: KvLayout, geometry: support.Geometry, settings: GraphSettings) -> Any:
    with torch.inference_mode():
        return verified_forward(model, layout, geometry.windows, settings)


@pytest.mark.parametrize("name", FUSABLE)
def test_a_fused_model_computes_what_it_computes_itself(name: str) -> None:
    model, layout, geometry = make(name)
    expected = own_logits(model)
    fused = fuse.fuse(model)
    assert fused is not None
    assert_same(run_steps(layout, partial(CudaForward, fused, geometry.windows, GRAPHS)), expected)
    assert_same(own_logits(model), expected)  # with weights that are views


def test_a_model_with_attention_by_kernels_computes_what_it_computes_itself() -> None:
    model, layout, geometry = make("gemma2_softcap")  # a layer with a window, one without
    expected = own_logits(model)

    def plain(pool: KvPool) -> CudaForward:
        attention.install(model, cuda_attention.NAME, cuda_attention.paged_attention)
        return CudaForward(partial(cuda_forward._transformers_logits, model), geometry.windows, GRAPHS, pool)

    assert_same(run_steps(layout, plain), expected)


def test_what_serves_has_been_compared() -> None:
    assert isinstance(factory(*make("llama"), GRAPHS).args[0], fuse.FusedModel)
    assert fuse.fuse(make("gemma2_softcap")[0]) is None


def test_a_fused_forward_that_differs_does_not_serve(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    right = gated.silu_and_mul
    monkeypatch.setattr(gated, "silu_and_mul", lambda x: right(x) * 1.01)
    with caplog.at_level(logging.WARNING, "kvrelay"):
        made = factory(*make("llama"), EAGER)
    assert "LlamaForCausalLM is served without fused kernels" in caplog.text
    assert not isinstance(made.args[0], fuse.FusedModel)


def test_a_kernel_that_differs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*operands: Any, **more: Any) -> None:
        right(*operands, **more)
        operands[5].mul_(1.01)  # out

    right = paged_decode.decode_attention
    monkeypatch.setattr(cuda_attention, "decode_attention", wrong)
    with pytest.raises(UnsupportedModel, match="differs from the model's own"):
        factory(*make("llama"), EAGER)


def test_what_cannot_be_captured_runs_eagerly(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(run: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing")

    settings = GraphSettings(sizes=(1, 2), max_model_len=64, capture=lambda: refuse)
    with caplog.at_level(logging.WARNING, "kvrelay"):
        assert next_tokens(settings) == next_tokens(EAGER)
    assert "no CUDA graph of a step of 2 rows: operation not permitted" in caplog.text


def test_a_step_beyond_the_stage_gets_a_larger_one(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = next_tokens(EAGER)
    monkeypatch.setattr(cuda_forward, "_STAGE_BYTES", 256)
    assert next_tokens(EAGER) == expected


@torch.inference_mode()
def test_a_forward_that_nobody_uses_takes_its_graphs_with_it() -> None:
    """Without the collector of cycles: what waited for that would keep its memory, and end in another's capture."""

    def record(run: Callable[[], None]) -> Callable[[], None]:
        run()
        return lambda: None  # a graph that was recorded knows nothing of what it was recorded from

    model, layout, geometry = make("llama")
    fused = fuse.fuse(model)
    assert fused is not None
    settings = GraphSettings(sizes=(2,), max_model_len=64, capture=lambda: record)
    gc.disable()
    try:
        forward = CudaForward(fused, geometry.windows, settings, KvPool(layout, 2, DEVICE))
        assert forward._graphs is not None
        graphs = weakref.ref(forward._graphs)
        del forward
        assert graphs() is None
    finally:
        gc.enable()


def test_prompts_are_not_attended_to_by_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which would build a plan for each new length."""
    cuda: Any = torch.backends.cuda  # not annotated
    asked: list[bool] = []

    def attend(*operands: Any, **more: Any) -> Tensor:
        asked.append(cuda.cudnn_sdp_enabled())
        return scaled_dot_product_attention(*operands, **more)

    monkeypatch.setattr(cuda_attention, "scaled_dot_product_attention", attend)
    model, layout, geometry = make("llama")
    fused = fuse.fuse(model)
    assert fused is not None
    forward = CudaForward(fused, geometry.windows, EAGER, KvPool(layout, 2, DEVICE))
    with torch.inference_mode():
        forward.logits([Row([7, 8, 9], 0, [0], SPEC)])
    assert asked == [False, False]  # a layer each
    assert cuda.cudnn_sdp_enabled()


@torch.inference_mode()
def next_tokens(settings: GraphSettings) -> list[int]:
    """What two prompts of one token are answered with."""
    model, layout, geometry = make("llama")
    fused = fuse.fuse(model)
    assert fused is not None
    forward = CudaForward(fused, geometry.windows, settings, KvPool(layout, 2, DEVICE))
    answer: list[int] = forward.logits([Row([7], 0, [0], SPEC), Row([8], 0, [1], SPEC)]).argmax(-1).tolist()
    return answer


@pytest.mark.parametrize("name", FUSABLE)
def test_fused_weights_are_the_models_own_in_the_same_memory(name: str) -> None:
    model, _, _ = make(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert fuse.fuse(model) is not None
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    layer: Any = model.model.layers[1]
    attended = (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
    for parts in (attended, (layer.mlp.gate_proj, layer.mlp.up_proj)):
        ends = [part.weight.data_ptr() + part.weight.nbytes for part in parts]
        assert [part.weight.data_ptr() for part in parts[1:]] == ends[:-1]
        assert len({part.weight.untyped_storage().data_ptr() for part in parts}) == 1
        assert parts[0].weight.untyped_storage().nbytes() == sum(part.weight.nbytes for part in parts)


def test_only_what_is_exactly_known_is_fused() -> None:
    llama: Any = LlamaForCausalLM  # its base class is not annotated
    subclass = type("Other", (llama,), {})
    config: Any = tiny_models.CONFIGS["llama"]()
    with quiet_transformers():
        assert fuse.fuse(subclass(config)) is None
        config.hidden_act = "gelu"
        assert fuse.fuse(llama(config)) is None
        replaced = llama(tiny_models.CONFIGS["llama"]())
    replaced.model.layers[2].mlp.up_proj = torch.nn.Sequential(replaced.model.layers[2].mlp.up_proj)
    assert fuse.fuse(replaced) is None


def test_a_cpu_needs_no_triton(tmp_path: Path) -> None:
    tiny_models.CONFIGS["llama"]().save_pretrained(tmp_path)
    program = (
        "import sys\n"
        "sys.modules['triton'] = None\n"  # nobody can import it
        "from engine.config import EngineConfig\n"
        "from engine.core import open_engine\n"
        f"open_engine(EngineConfig(model={str(tmp_path)!r}, load_format='dummy', pool_pages=8), lambda *_: None)\n"
        "print([name for name in sys.modules if name.startswith('engine.cuda')])\n"
    )
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.stdout == "[]\n", answer.stderr
