"""Does the fake engine compute what anybody can compute by hand, from its pages and from nothing else?"""

import ctypes
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.fake import FakeEngine, fake_layout, fake_tokens
from engine.port import Row, RowFailed, SampleSpec
from runtime.params import SamplingParams
from runtime.tokens import SampledToken

PAGE = 4
LAYOUT = fake_layout(PAGE, kv_bytes_per_token=32)
PARAMS = SamplingParams(max_tokens=8, seed=0)


def engine(weight: int = 0, pages: int = 32) -> FakeEngine:
    return FakeEngine(LAYOUT, pages, weight=weight)


def row(tokens: Sequence[int], start: int, pages: Sequence[int], *, sample: bool = True) -> Row:
    return Row(tuple(tokens), start, tuple(pages), SampleSpec(PARAMS, 0, (), ()) if sample else None)


def answer(fake: FakeEngine, rows: Sequence[Row]) -> list[int | None]:
    return [result.token_id if isinstance(result, SampledToken) else None for result in fake.forward(rows)]


def overwrite(fake: FakeEngine, page: int, offset: int, value: bytes) -> None:
    (region,) = fake.regions((page,))
    ctypes.memmove(region.address + offset, value, len(value))


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_the_oracle_can_be_checked_by_hand() -> None:
    assert fake_tokens([1, 2, 3], 3) == [97 + 6, 97 + (6 + 103) % 26, 97 + (6 + 103 + 102) % 26]
    assert fake_tokens([1, 2, 3], 2, prefill_weight=1, decode_weight=5) == [97 + 7, 97 + (5 + 6 + 104) % 26]
    assert fake_tokens([], 1) == [97]


@given(st.lists(st.integers(0, 255), min_size=1, max_size=30), st.integers(1, 12), st.integers(0, 1 << 16))
def test_prompt_chunks_and_scattered_pages_do_not_change_the_answer(prompt: list[int], count: int, seed: int) -> None:
    chance = random.Random(seed)
    fake = engine(weight=3)
    pages = chance.sample(range(32), LAYOUT.pages_for(len(prompt) + count))
    start = 0
    while start < len(prompt):
        end = min(start + chance.randint(1, len(prompt)), len(prompt))
        (first,) = answer(fake, [row(prompt[start:end], start, pages, sample=end == len(prompt))])
        assert (first is None) == (end < len(prompt))
        start = end
    output = [first]
    for position in range(len(prompt), len(prompt) + count - 1):
        assert output[-1] is not None
        output += answer(fake, [row([output[-1]], position, pages)])
    assert output == fake_tokens(prompt, count, prefill_weight=3, decode_weight=3)


def test_rows_of_a_mixed_batch_do_not_meet() -> None:
    fake = engine()
    prompts = [[1, 2, 3, 4, 5], [200] * 9, [7]]
    pages = [(9, 3), (0, 31, 5), (4,)]
    fake.forward([row(prompts[1][:8], 0, pages[1], sample=False)])
    mixed = [row(prompts[0], 0, pages[0]), row(prompts[1][8:], 8, pages[1]), row(prompts[2], 0, pages[2])]
    assert answer(fake, mixed) == [fake_tokens(prompt, 1)[0] for prompt in prompts]


def test_the_weight_shows_which_engine_made_a_token() -> None:
    assert answer(engine(weight=0), [row([1], 0, (0,))]) == [98]
    assert answer(engine(weight=1), [row([1], 0, (0,))]) == [99]


# --- pages -----------------------------------------------------------------------------------------------------------


def test_the_answer_comes_from_the_pages() -> None:
    """Pages copied to another engine are all it needs; the prompt itself is never seen there."""
    prompt, here, there = [11, 22, 33, 44, 55, 66], (5, 2), (7, 1)
    source, target = engine(weight=1), engine(weight=2)
    first = answer(source, [row(prompt, 0, here)])[0]
    assert first is not None
    for one, other in zip(here, there, strict=True):
        (region,) = source.regions((one,))
        overwrite(target, other, 0, ctypes.string_at(region.address, region.nbytes))
    assert target.digest(there) == source.digest(here)
    second = answer(target, [row([first], len(prompt), there)])[0]
    assert [first, second] == fake_tokens(prompt, 2, prefill_weight=1, decode_weight=2)


@pytest.mark.parametrize("position", range(6))
def test_a_damaged_token_changes_digest_and_answer(position: int) -> None:
    prompt, pages = [11, 22, 33, 44, 55, 66], (5, 2)
    fake = engine()
    fake.forward([row(prompt, 0, pages)])
    whole = fake.digest(pages)
    page, slot = pages[position // PAGE], position % PAGE
    overwrite(fake, page, (slot + 1) * 32 - 8, (prompt[position] + 1).to_bytes(8, "little"))
    damaged = fake.digest(pages)
    differs = [damaged[8 * i : 8 * i + 8] != whole[8 * i : 8 * i + 8] for i in range(2)]
    assert differs == [page == 5, page == 2]
    assert answer(fake, [row([1], 6, pages)]) != [fake_tokens([*prompt, 1], 1)[0]]


def test_what_an_earlier_request_left_in_a_page_does_not_count() -> None:
    fake = engine()
    fake.forward([row([201, 202, 203, 204], 0, (5,))])
    assert answer(fake, [row([1, 2], 0, (5,))]) == fake_tokens([1, 2], 1)


def test_a_missing_page_changes_the_answer() -> None:
    fake = engine()
    fake.forward([row([11, 22, 33, 44, 55], 0, (5, 2))])
    assert answer(fake, [row([1], 5, (6, 2))]) != [fake_tokens([11, 22, 33, 44, 55, 1], 1)[0]]


@given(st.integers(0, LAYOUT.page_bytes - 1), st.integers(1, 255))
def test_every_byte_of_a_page_is_in_its_digest(offset: int, flip: int) -> None:
    fake = engine(pages=4)
    fake.forward([row([1, 2, 3, 4], 0, (1,))])
    whole = fake.digest((1,))
    (region,) = fake.regions((1,))
    byte = ctypes.string_at(region.address + offset, 1)[0]
    overwrite(fake, 1, offset, bytes((byte ^ flip,)))
    assert fake.digest((1,)) != whole


def test_a_digest_belongs_to_its_page_wherever_that_stands() -> None:
    fake = engine()
    fake.forward([row(list(range(12)), 0, (3, 8, 1))])
    each = {page: fake.digest((page,)) for page in (3, 8, 1)}
    assert len(set(each.values())) == 3
    assert fake.digest((1, 3, 8)) == each[1] + each[3] + each[8]


def test_no_pages_have_no_digest() -> None:
    """A chunk that completes no page is an ordinary step."""
    assert engine().digest(()) == b""
    assert engine().regions(()) == ()


def test_regions_merge_neighbours_in_memory_and_keep_the_order() -> None:
    fake = engine()
    size = LAYOUT.page_bytes
    (base,) = fake.regions((0,))
    regions = fake.regions((3, 4, 5, 9, 8, 10))
    assert [(region.address - base.address, region.nbytes) for region in regions] == [
        (3 * size, 3 * size),
        (9 * size, size),
        (8 * size, size),
        (10 * size, size),
    ]


# --- shape -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_bytes_per_token", [16, 32, 4096])
def test_the_layout_moves_as_many_bytes_as_were_asked_for(kv_bytes_per_token: int) -> None:
    layout = fake_layout(8, kv_bytes_per_token)
    assert (layout.token_bytes, layout.page_bytes) == (kv_bytes_per_token, 8 * kv_bytes_per_token)
    fake = FakeEngine(layout, 4)
    assert answer(fake, [row([1, 2, 3], 0, (2,))]) == fake_tokens([1, 2, 3], 1)
    assert len(fake.digest((0, 1))) == 16


def test_a_copy_has_a_rate() -> None:
    assert engine().memcpy_gigabytes_per_s() > 0


def test_a_request_with_a_grammar_fails_alone() -> None:
    fake = engine()
    spec = SampleSpec(PARAMS, 0, (), (), fake.matcher("start: /a/"))
    failed, token = fake.forward([Row((1,), 0, (0,), spec), row([1], 0, (1,))])
    assert isinstance(failed, RowFailed)
    assert "knows no grammars" in failed.reason
    assert token == SampledToken(98)


def test_a_row_that_follows_is_fed_what_was_sampled_just_before() -> None:
    fake = engine()
    prompts, pages = [[1, 2, 3], [50, 60]], [(4, 5), (6, 7)]
    first = answer(fake, [row(prompt, 0, where) for prompt, where in zip(prompts, pages, strict=True)])
    spec = SampleSpec(PARAMS, 1, (), ())
    following = [Row((0,), 2, pages[1], spec, follows=1), Row((0,), 3, pages[0], spec, follows=0)]
    second = answer(fake, following)
    assert [first[1], second[0]] == fake_tokens(prompts[1], 2)
    assert [first[0], second[1]] == fake_tokens(prompts[0], 2)
