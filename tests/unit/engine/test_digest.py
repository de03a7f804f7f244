"""Does a digest see every kind of damage, and nothing but the page?"""

import random

import pytest
import torch
from torch import Tensor

from engine.layout import KvLayout
from engine.pool import KvPool

LAYOUT = KvLayout(layers=3, page_tokens=4, kv_heads=2, head_dim=8, dtype="float32", dtype_bytes=4, model="tiny")
Page = Tensor  # [layers, 2, tokens, kv_heads, head_dim]


@pytest.fixture
def pool() -> KvPool:
    pool = KvPool(LAYOUT, 6, torch.device("cpu"))
    pool._pages.normal_(generator=torch.Generator().manual_seed(0))
    return pool


def words(pool: KvPool, page: int) -> Tensor:
    return pool._pages[page].view(-1).view(torch.int64)


def test_eight_bytes_per_page_in_the_order_asked_for(pool: KvPool) -> None:
    digests = [pool.digest([page]) for page in range(6)]
    assert {len(d) for d in digests} == {8}
    assert len(set(digests)) == 6
    assert pool.digest([3, 4, 5, 1]) == digests[3] + digests[4] + digests[5] + digests[1]
    assert pool.digest([]) == b""


def test_equal_bytes_digest_alike_on_every_page(pool: KvPool) -> None:
    pool._pages[5] = pool._pages[2]
    assert pool.digest([5]) == pool.digest([2])


def splitmix64(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_it_is_the_function_it_says_it_is(pool: KvPool) -> None:
    """In plain integers; two versions of a worker must agree on it."""
    flat = [word % 2**64 for word in words(pool, 4).tolist()]
    rows = [flat[i : i + 8] for i in range(0, 192, 8)]
    sums = [*(sum(column) for column in zip(*rows, strict=True)), *(sum(row) for row in rows)]
    scrambled = [splitmix64((total + i * 0x9E3779B97F4A7C15) % 2**64) for i, total in enumerate(sums, 1)]
    assert pool.digest([4]) == (sum(scrambled) % 2**64).to_bytes(8, "little")


@pytest.mark.parametrize("bit", range(64))
def test_one_flipped_bit_shows_wherever_it_is(pool: KvPool, bit: int) -> None:
    before = pool.digest([1])
    flip = torch.tensor(1, dtype=torch.int64) << bit
    for word in random.Random(bit).sample(range(192), 8):
        words(pool, 1)[word] ^= flip
        assert pool.digest([1]) != before
        words(pool, 1)[word] ^= flip
    assert pool.digest([1]) == before


def exchange(page: Page, first: tuple[slice | int, ...], second: tuple[slice | int, ...]) -> None:
    page[first], page[second] = page[second].clone(), page[first].clone()


ALL = slice(None)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param((ALL, ALL, 0), (ALL, ALL, 3), id="tokens"),
        pytest.param((1, ALL, 0), (1, ALL, 1), id="tokens of one layer"),
        pytest.param((0,), (2,), id="layers"),
        pytest.param((ALL, 0), (ALL, 1), id="keys and values"),
        pytest.param((ALL, ALL, ALL, 0), (ALL, ALL, ALL, 1), id="heads"),
        pytest.param((0, 0, 0, 0, 0), (2, 1, 3, 1, 7), id="two numbers"),
        pytest.param((0, 0, 0, 0, 0), (0, 0, 0, 0, 1), id="neighbours"),
        pytest.param((0, 1, slice(0, 2)), (1, 0, slice(2, 4)), id="pieces"),
    ],
)
def test_an_exchange_shows(pool: KvPool, first: tuple[slice | int, ...], second: tuple[slice | int, ...]) -> None:
    before = pool.digest([1])
    exchange(pool._pages[1], first, second)
    assert pool.digest([1]) != before


def test_an_exchange_of_numbers_that_differ_in_their_sign_shows(pool: KvPool) -> None:
    """The weakness of weighted sums modulo 2**64: the top bit meets only even differences of odd weights."""
    flat = words(pool, 1)
    flat[7] = flat[100] ^ torch.iinfo(torch.int64).min
    before = pool.digest([1])
    exchange(flat, (7,), (100,))
    assert pool.digest([1]) != before


@pytest.mark.parametrize("kept", [0, 1, 95, 191])
def test_a_missing_or_stale_tail_shows(pool: KvPool, kept: int) -> None:
    before = pool.digest([1])
    original = words(pool, 1).clone()
    words(pool, 1)[kept:] = 0
    assert pool.digest([1]) != before
    words(pool, 1)[kept:] = words(pool, 2)[kept:]
    assert pool.digest([1]) != before
    words(pool, 1).copy_(original)
    assert pool.digest([1]) == before


def test_random_damage_shows(pool: KvPool) -> None:
    before = pool.digest([1])
    original = words(pool, 1).clone()
    generator = torch.Generator().manual_seed(1)
    for _ in range(300):
        start, end = sorted(torch.randint(0, 193, (2,), generator=generator).tolist())
        noise = torch.randint(-(1 << 62), 1 << 62, (end - start,), generator=generator)
        words(pool, 1)[start:end] = noise
        assert (pool.digest([1]) == before) == (start == end)
        words(pool, 1).copy_(original)
