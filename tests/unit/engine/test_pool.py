"""Are pages where the layout says, and only there?"""

import ctypes

import pytest
import torch

from engine.layout import KvLayout
from engine.pool import KvPool, UnusableMemory, refuse_expandable_segments
from runtime.buffers import MemoryKind, Region

LAYOUT = KvLayout(layers=2, page_tokens=4, kv_heads=3, head_dim=2, dtype="float32", dtype_bytes=4, model="tiny")


@pytest.fixture
def pool() -> KvPool:
    return KvPool(LAYOUT, 8, torch.device("cpu"))


def read(region: Region) -> torch.Tensor:
    raw = bytearray(ctypes.string_at(region.address, region.nbytes))
    return torch.frombuffer(raw, dtype=torch.float32)


def test_it_starts_zeroed(pool: KvPool) -> None:
    (everything,) = pool.regions(range(8))
    assert everything.nbytes == 8 * LAYOUT.page_bytes
    assert everything.kind is MemoryKind.HOST
    assert not read(everything).any()


def test_neighbours_are_one_region(pool: KvPool) -> None:
    merged = pool.regions([4, 5, 6, 1, 0])
    base = pool.regions([0])[0].address
    size = LAYOUT.page_bytes
    assert [((r.address - base) // size, r.nbytes // size) for r in merged] == [(4, 3), (1, 1), (0, 1)]


@pytest.mark.parametrize("layer", [0, 1])
def test_rows_and_planes_are_views_of_the_page_major_layout(pool: KvPool, layer: int) -> None:
    page, token = 5, 3
    cache = pool.layers()[layer]
    planes_per_page = 2 * LAYOUT.layers
    slot = torch.tensor([page * planes_per_page * LAYOUT.page_tokens + token])
    key, value = torch.arange(1.0, 7.0)[None], torch.arange(11.0, 17.0)[None]
    cache.key_rows.index_copy_(0, slot, key)
    cache.value_rows.index_copy_(0, slot, value)

    expected = torch.zeros(8, *LAYOUT.page_shape)
    expected[page, layer, 0, token] = key.view(3, 2)
    expected[page, layer, 1, token] = value.view(3, 2)
    assert torch.equal(read(pool.regions(range(8))[0]), expected.flatten())
    plane = page * planes_per_page
    assert torch.equal(cache.key_planes[plane], expected[page, layer, 0].flatten())
    assert torch.equal(cache.value_planes[plane], expected[page, layer, 1].flatten())


def test_the_last_slot_of_the_last_page_is_in_every_view(pool: KvPool) -> None:
    last = 7 * 2 * LAYOUT.layers * LAYOUT.page_tokens + LAYOUT.page_tokens - 1
    for cache in pool.layers():
        cache.value_rows[last] = 1.0
        cache.value_planes[7 * 2 * LAYOUT.layers]
    assert read(pool.regions([7])[0]).count_nonzero() == LAYOUT.layers * LAYOUT.kv_heads * LAYOUT.head_dim


def test_clear_zeroes_whole_pages_and_no_others(pool: KvPool) -> None:
    for cache in pool.layers():
        cache.key_rows.fill_(1.0)
        cache.value_rows.fill_(1.0)
    pool.clear(torch.tensor([2, 6]))
    assert [bool(read(pool.regions([page])[0]).all()) for page in range(8)] == [page not in (2, 6) for page in range(8)]
    assert not read(pool.regions([2])[0]).any()


def test_the_copy_rate_leaves_the_pages_alone(pool: KvPool) -> None:
    before = pool.digest(range(8))
    assert 0.01 < pool.memcpy_gigabytes_per_s() < 10_000
    assert pool.digest(range(8)) == before


def test_rows_that_are_not_whole_words_are_refused() -> None:
    odd = KvLayout(layers=1, page_tokens=4, kv_heads=1, head_dim=3, dtype="float32", dtype_bytes=4, model="odd")
    with pytest.raises(UnusableMemory, match="8-byte words"):
        KvPool(odd, 1, torch.device("cpu"))


@pytest.mark.parametrize("name", ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
def test_expandable_segments_are_refused(name: str) -> None:
    with pytest.raises(UnusableMemory, match=name):
        refuse_expandable_segments({name: "max_split_size_mb:64, Expandable_Segments:True"})
    refuse_expandable_segments({name: "expandable_segments:False,max_split_size_mb:64"})
    refuse_expandable_segments({})
