"""Does attention of prompt chunks over pages compute what attention is defined as, and touch nothing else?"""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch

from engine.cuda.kernels.paged_prefill import prefill_attention, tiles
from tests.support.plain_kernels import Shape, Source, assert_close, attention, bits, dtypes

SHARED_MEMORY = 227 << 10
"""Of a Hopper multiprocessor, for one program."""


@dataclass(frozen=True)
class Case:
    shape: Shape  # heads, kv_heads, head_dim, page_tokens
    chunks: Sequence[tuple[int, int]]  # position and number of tokens
    window: int | None = None
    softcap: float | None = None


# Blocks have 32 queries and 16 keys in float32, in 16 bits 64 or 128 queries and 32 (head_dim 256), 64 or 128 keys; a
# query is a (token, head) pair.
CASES = (
    Case(Shape(2, 2, 64, 4), [(0, 1), (31, 3), (0, 0), (32, 40), (64, 31)]),  # float32
    Case(Shape(4, 2, 80, 16), [(63, 33), (0, 1), (64, 32), (129, 31)]),  # float16
    Case(Shape(3, 1, 96, 7), [(5, 33), (33, 11)], softcap=2.0),
    Case(Shape(4, 1, 128, 1), [(0, 9), (61, 16), (3, 0)]),
    Case(Shape(8, 1, 16, 16), [(0, 20), (40, 9)], window=3),
    Case(Shape(16, 1, 32, 4), [(200, 5), (5, 12)], window=130),
    Case(Shape(2, 2, 256, 7), [(3, 40), (40, 1)], window=1),  # half of a block sees none of the first keys
    Case(Shape(1, 1, 256, 4), [(50, 20), (0, 65)], window=1000, softcap=1.5),
    Case(Shape(6, 3, 48, 16), [(17, 14), (0, 17)], window=37),
)
NUMBERED = [
    pytest.param(case, dtype, id=f"{number}-{str(dtype).removeprefix('torch.')}")
    for number, case in enumerate(CASES)
    for dtype in dtypes(number, on_gpu=torch.cuda.is_available())
]


@pytest.mark.parametrize(("case", "dtype"), NUMBERED)
def test_each_token_attends_to_what_is_before_it(case: Case, dtype: torch.dtype, device: torch.device) -> None:
    shape = case.shape
    source = Source(device, dtype, seed=shape.head_dim)
    unseen = None if case.window is None else [max(0, position - case.window + 1) for position, _ in case.chunks]
    paged = source.paged(shape, [position + tokens for position, tokens in case.chunks], unseen)
    starts = [sum(tokens for _, tokens in case.chunks[:row]) for row in range(len(case.chunks) + 1)]
    fused = source.normal(starts[-1] + 2, shape.heads + 2 * shape.kv_heads, shape.head_dim)
    query = fused[:, : shape.heads]
    around = source.poison(starts[-1] + 2, shape.heads, shape.head_dim + 1)
    out = around[:, :, 1:]
    before = [bits(paged.pool), bits(fused)]
    prefill_attention(
        query,
        paged.keys,
        paged.values,
        paged.table,
        source.int32(starts),
        source.int32([position for position, _ in case.chunks]),
        out,
        max_tokens=max(tokens for _, tokens in case.chunks),
        scale=0.3,
        window=case.window,
        softcap=case.softcap,
    )
    for row, (position, tokens) in enumerate(case.chunks):
        skipped = unseen[row] if unseen else 0
        keys, values = paged.sequences[row][:, skipped:]
        chunk = slice(starts[row], starts[row] + tokens)
        expected = attention(
            query[chunk], keys, values, position - skipped, scale=0.3, window=case.window, softcap=case.softcap
        )
        assert_close(out[chunk], expected)
    assert all(torch.equal(bits(now), then) for now, then in zip((paged.pool, fused), before, strict=True))
    assert int(around.isnan().sum()) == around.numel() - starts[-1] * shape.heads * shape.head_dim


@pytest.mark.parametrize("chunks", [[], [(0, 0)]])
def test_chunks_without_tokens_are_no_launch(chunks: list[tuple[int, int]], device: torch.device) -> None:
    source = Source(device, torch.float32, seed=0)
    paged = source.paged(Shape(1, 1, 16, 4), [5])
    none = torch.empty(0, 1, 16, device=device)
    prefill_attention(
        none,
        paged.keys,
        paged.values,
        paged.table[: len(chunks)],
        source.int32([0] * (len(chunks) + 1)),
        source.int32([0] * len(chunks)),
        none,
        max_tokens=0,
        scale=1.0,
        window=None,
        softcap=None,
    )


def test_starts_that_do_not_fit_the_rows_are_refused(device: torch.device) -> None:
    source = Source(device, torch.float32, seed=0)
    paged = source.paged(Shape(1, 1, 16, 4), [5])
    query = source.normal(5, 1, 16)
    with pytest.raises(ValueError, match="1 starts"):
        prefill_attention(
            query,
            paged.keys,
            paged.values,
            paged.table,
            source.int32([0]),
            source.int32([0]),
            torch.empty_like(query),
            max_tokens=5,
            scale=1.0,
            window=None,
            softcap=None,
        )


@pytest.mark.parametrize("head_dim", [16, 48, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("element_bytes", [2, 4])
@pytest.mark.parametrize("queries", [1, 65])
def test_a_program_fits_a_multiprocessor(head_dim: int, element_bytes: int, queries: int) -> None:
    tile = tiles(head_dim, element_bytes, queries)
    padded = max(16, 1 << (head_dim - 1).bit_length())
    tokens = tile.block_queries + 2 * tile.num_stages * tile.block_keys
    assert tokens * padded * element_bytes <= SHARED_MEMORY
