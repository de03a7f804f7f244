"""Are bytes and operations counted as a person would count them?"""

import pytest

from bench.gpu.floors import copied_bytes, decode_bytes, matrix_parameters, prefill_flops, weight_bytes
from bench.gpu.shapes import LLAMA_8B, Shape

SMALL = Shape(
    name="s", hidden=8, layers=2, heads=4, kv_heads=2, head_dim=3, ffn=5, vocab=7, context=64, dtype="x", dtype_bytes=2
)


def test_the_matrices_of_a_layer() -> None:
    q, k, v, o = 8 * 12, 8 * 6, 8 * 6, 12 * 8
    gate, up, down = 8 * 5, 8 * 5, 5 * 8
    assert matrix_parameters(SMALL) == 2 * (q + k + v + o + gate + up + down)


def test_a_step_reads_the_weights_once_and_every_key_and_value() -> None:
    norms, head = 5 * 8, 8 * 7
    weights = (matrix_parameters(SMALL) + norms + head) * 2
    assert weight_bytes(SMALL) == weights
    per_token = 2 * 2 * 2 * 3 * 2  # k and v, layers, kv_heads, head_dim, bytes
    assert SMALL.kv_token_bytes == per_token
    assert decode_bytes(SMALL, rows=3, context=10) == weights + 3 * 10 * per_token


def test_the_size_that_the_numbers_are_about() -> None:
    assert weight_bytes(LLAMA_8B) == pytest.approx(15.0e9, rel=0.01)  # the embedding, 1 GB, is not read
    assert LLAMA_8B.kv_token_bytes == 131_072


@pytest.mark.parametrize("tokens", [1, 2, 9])
def test_the_operations_of_a_prompt_are_those_of_each_token_and_each_pair(tokens: int) -> None:
    matrices = 2 * matrix_parameters(SMALL) * tokens
    head = 2 * 8 * 7
    pairs = sum(range(1, tokens + 1))  # each token with those up to itself
    attention = 2 * 4 * pairs * (2 * 3 + 2 * 3)  # layers, heads, scores and weighted values
    assert prefill_flops(SMALL, tokens) == matrices + head + attention


def test_a_copy_reads_and_writes() -> None:
    assert copied_bytes(10) == 20
