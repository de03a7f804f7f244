"""Does decode attention over pages compute what attention is defined as, and touch nothing else?"""

from dataclasses import dataclass

import pytest
import torch

from engine.cuda.kernels.paged_decode import MAX_SPLITS, DecodeWorkspace, decode_attention, good_splits, tiles
from tests.support.plain_kernels import Shape, Source, assert_close, attention, bits, dtypes

SHARED_MEMORY = 227 << 10
"""Of a Hopper multiprocessor, for one program."""


@dataclass(frozen=True)
class Case:
    shape: Shape  # heads, kv_heads, head_dim, page_tokens
    splits: int = 1
    window: int | None = None
    softcap: float | None = None


CASES = (
    Case(Shape(2, 2, 128, 4), splits=2),
    Case(Shape(4, 2, 64, 16)),
    Case(Shape(3, 1, 80, 1), splits=3),
    Case(Shape(8, 2, 96, 7), splits=2, softcap=2.0),
    Case(Shape(8, 1, 256, 16), splits=8),
    Case(Shape(2, 2, 16, 16), splits=4, window=3),
    Case(Shape(2, 1, 128, 7), splits=3, window=45, softcap=1.5),
    Case(Shape(20, 1, 32, 4), splits=2, window=1000),
    Case(Shape(4, 1, 256, 4), splits=3, window=37),
    Case(Shape(1, 1, 48, 1), window=1),
)
NUMBERED = [
    pytest.param(case, dtype, id=f"{number}-{str(dtype).removeprefix('torch.')}")
    for number, case in enumerate(CASES)
    for dtype in dtypes(number, on_gpu=torch.cuda.is_available())
]


def lengths(shape: Shape, block: int) -> list[int]:
    """Padding, the borders of a page and of a block, and some blocks with a part of one."""
    page = shape.page_tokens
    return sorted({0, 1, page - 1, page, page + 1, block - 1, block, block + 1, 2 * block + page // 2 + 3})


@pytest.mark.parametrize(("case", "dtype"), NUMBERED)
def test_each_row_attends_to_its_own_keys(case: Case, dtype: torch.dtype, device: torch.device) -> None:
    shape = case.shape
    source = Source(device, dtype, seed=shape.head_dim)
    counts = lengths(shape, tiles(shape.head_dim, dtype.itemsize).block_keys)
    unseen = None if case.window is None else [max(0, count - case.window) for count in counts]
    paged = source.paged(shape, counts, unseen)
    fused = source.normal(len(counts), shape.heads + 2 * shape.kv_heads, shape.head_dim)
    query = fused[:, : shape.heads]
    around = source.poison(len(counts) + 2, shape.heads, shape.head_dim + 1)
    out = around[1:-1, :, 1:]
    workspace = DecodeWorkspace.make(len(counts) + 1, shape.heads, shape.head_dim, case.splits, device)
    workspace.partials.fill_(torch.nan)
    workspace.logs.fill_(torch.nan)
    before = [bits(paged.pool), bits(fused)]
    decode_attention(
        query,
        paged.keys,
        paged.values,
        paged.table,
        source.int32(counts),
        out,
        workspace,
        scale=0.3,
        window=case.window,
        softcap=case.softcap,
    )
    for row, count in enumerate(counts):
        keys, values = paged.sequences[row][:, unseen[row] if unseen else 0 :]
        expected = torch.zeros(shape.heads, shape.head_dim, dtype=torch.float64, device=device)
        if count:
            expected = attention(
                query[row : row + 1], keys, values, len(keys) - 1, scale=0.3, window=None, softcap=case.softcap
            )[0]
        assert_close(out[row], expected)
    assert all(torch.equal(bits(now), then) for now, then in zip((paged.pool, fused), before, strict=True))
    assert int(around.isnan().sum()) == around.numel() - out.numel()
    assert bool(workspace.partials[len(counts) :].isnan().all())


def test_a_batch_of_no_rows_is_no_launch(device: torch.device) -> None:
    source = Source(device, torch.float32, seed=0)
    paged = source.paged(Shape(1, 1, 16, 4), [5])
    none = torch.empty(0, 1, 16, device=device)
    workspace = DecodeWorkspace.make(1, 1, 16, 1, device)
    decode_attention(
        none,
        paged.keys,
        paged.values,
        paged.table[:0],
        source.int32([]),
        none,
        workspace,
        scale=1.0,
        window=None,
        softcap=None,
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="its pool has more than 4 GiB")
def test_a_page_may_lie_beyond_two_to_the_31_elements(device: torch.device) -> None:
    source = Source(device, torch.bfloat16, seed=0)
    pages, stride = 35, 1 << 26
    memory = torch.empty(pages * stride, dtype=torch.bfloat16, device=device)
    keys, values = (memory[at:].as_strided((pages, 4, 1, 64), (stride, 128, 128, 1)) for at in (0, 64))
    sequence = source.normal(2, 8, 1, 64)
    for at, page in enumerate((34, 33)):
        keys[page], values[page] = sequence[:, at * 4 : at * 4 + 4]
    query, out = source.normal(1, 2, 64), source.poison(1, 2, 64)
    workspace = DecodeWorkspace.make(1, 2, 64, 1, device)
    table = source.int32([34, 33])[None]
    decode_attention(
        query, keys, values, table, source.int32([8]), out, workspace, scale=0.1, window=None, softcap=None
    )
    assert_close(out, attention(query, sequence[0], sequence[1], 7, scale=0.1, window=None, softcap=None))


@pytest.mark.parametrize("splits", [0, MAX_SPLITS + 1])
def test_a_workspace_has_as_many_splits_as_can_be_joined(splits: int, device: torch.device) -> None:
    with pytest.raises(ValueError, match=f"{splits} splits"):
        DecodeWorkspace.make(1, 1, 16, splits, device)


@pytest.mark.parametrize("mistake", ["workspace", "heads", "keys", "values"])
def test_operands_that_do_not_fit_are_refused(mistake: str, device: torch.device) -> None:
    source = Source(device, torch.float32, seed=0)
    paged = source.paged(Shape(2, 2, 16, 4), [5, 5])
    keys, values = paged.keys, paged.values
    if mistake == "keys":
        keys = values = keys.transpose(2, 3)
    elif mistake == "values":
        values = values.contiguous()
    query = source.normal(2, 3 if mistake == "heads" else 2, 16)
    workspace = DecodeWorkspace.make(1 if mistake == "workspace" else 2, query.shape[1], 16, 1, device)
    with pytest.raises(ValueError, match="differ" if mistake == "values" else "not contiguous|workspace"):
        decode_attention(
            query,
            keys,
            values,
            paged.table,
            source.int32([5, 5]),
            torch.empty_like(query),
            workspace,
            scale=1.0,
            window=None,
            softcap=None,
        )


def test_a_small_batch_is_split_until_the_device_is_full() -> None:
    assert good_splits(rows=1, kv_heads=8, multiprocessors=132) == 64
    assert good_splits(rows=8, kv_heads=8, multiprocessors=132) == 8
    assert good_splits(rows=256, kv_heads=8, multiprocessors=132) == 1
    assert good_splits(rows=1, kv_heads=1, multiprocessors=132) == MAX_SPLITS


@pytest.mark.parametrize("head_dim", [16, 48, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("element_bytes", [2, 4])
def test_two_programs_fit_a_multiprocessor(head_dim: int, element_bytes: int) -> None:
    tile = tiles(head_dim, element_bytes)
    padded = 1 << (head_dim - 1).bit_length()
    assert tile.block_keys >= 16
    assert 2 * tile.num_stages * 2 * tile.block_keys * padded * element_bytes <= SHARED_MEMORY
