"""Do the fused norms and the gated activation compute what transformers does, on views too?"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from engine.cuda.kernels.gated import silu_and_mul
from engine.cuda.kernels.rms_norm import add_rms_norm, rms_norm
from tests.support import plain_kernels as plain

DTYPES = sorted({dtype for number in (0, 1) for dtype in plain.dtypes(number, torch.cuda.is_available())}, key=str)
EPS = 1e-3  # large enough to matter


VIEWS: dict[str, Callable[[plain.Source], Tensor]] = {
    "row": lambda source: source.normal(80),
    "rows": lambda source: source.normal(3, 128),
    "batch": lambda source: source.normal(1, 4, 1000),
    "heads of a fused projection": lambda source: source.normal(2, 3, 7, 16)[:, :, 1:4],
    "columns": lambda source: source.normal(3, 2, 48)[..., 8:40],
    "last dimension not contiguous": lambda source: source.normal(40, 3).T,
    "no rows": lambda source: source.normal(0, 64),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", VIEWS)
def test_rms_norm(name: str, dtype: torch.dtype, device: torch.device) -> None:
    source = plain.Source(device, dtype, seed=5)
    x = VIEWS[name](source)
    weight = source.normal(x.shape[-1])
    before = x.clone()
    plain.assert_close(rms_norm(x, weight, EPS), plain.rms_norm(x, weight, EPS))
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", VIEWS)
def test_add_rms_norm(name: str, dtype: torch.dtype, device: torch.device) -> None:
    source = plain.Source(device, dtype, seed=6)
    x = VIEWS[name](source)
    residual, weight = source.normal(*x.shape), source.normal(x.shape[-1])
    before = x.clone(), residual.clone()
    normed, total = add_rms_norm(x, residual, weight, EPS)
    assert torch.equal(total, before[0] + before[1])
    plain.assert_close(normed, plain.rms_norm(total, weight, EPS))
    assert torch.equal(x, before[0])
    assert torch.equal(residual, before[1])


def test_a_norm_rounds_where_transformers_does(device: torch.device) -> None:
    """The sum, and the scaled state before it meets the weight; another order of addition tips over a few."""
    source = plain.Source(device, torch.float16, seed=10)
    x, residual, weight = source.normal(20, 1000), source.normal(20, 1000), source.normal(1000)
    normed, _ = add_rms_norm(x, residual, weight, EPS)
    state = (x + residual).float()
    scaled = (state * torch.rsqrt(state.square().mean(dim=-1, keepdim=True) + EPS)).to(torch.float16)
    assert float((normed == scaled * weight).float().mean()) > 0.99


def test_a_weight_of_more_bits_gives_an_output_of_more_bits(device: torch.device) -> None:
    x = plain.Source(device, torch.float16, seed=7).normal(2, 32)
    weight = plain.Source(device, torch.float32, seed=8).normal(32)
    normed = rms_norm(x, weight, EPS)
    rounded = plain.rms_norm(x, torch.ones_like(weight), EPS).to(torch.float16)
    assert normed.dtype == torch.float32
    torch.testing.assert_close(normed, rounded * weight, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 32), (1, 3, 2 * 1025), (2, 2, 12), (0, 8)])
def test_silu_and_mul(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    gate_up = plain.Source(device, dtype, seed=9).normal(*shape) * 4
    plain.assert_close(silu_and_mul(gate_up), plain.silu_and_mul(gate_up))


def test_a_projection_without_halves_is_refused(device: torch.device) -> None:
    with pytest.raises(ValueError, match="no two halves"):
        silu_and_mul(torch.ones(2, 5, device=device))
