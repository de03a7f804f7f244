"""Do the kernels learn of a step what its rows say?"""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.cuda.tables import Stage, columns_for, decode_room, packed_bytes, padded, tabulate
from engine.layout import KvLayout
from engine.port import Row, SampleSpec
from runtime.params import SamplingParams

LAYOUT = KvLayout(layers=2, page_tokens=4, kv_heads=2, head_dim=8, dtype="float32", dtype_bytes=4, model="tiny")
SPEC = SampleSpec(SamplingParams(), 0, (), ())
CPU = torch.device("cpu")

MIXED = [
    Row([7], 8, (3, 9, 5), SPEC),  # a token that begins a page
    Row([1, 2, 3], 4, [6, 2], None),  # a chunk that goes on
    Row([4, 5, 6, 7, 8], 0, range(10, 12), SPEC),  # a chunk that begins
    Row([9], 2, [8, 1], SPEC),
]


def test_a_mixed_step() -> None:
    plan = tabulate(MIXED, LAYOUT)
    tables = plan.tables
    assert (plan.outline.starts, plan.outline.opening, plan.outline.decodes) == ((0, 5, 8), 1, 2)
    assert (plan.outline.chunks, plan.outline.chunk_tokens) == (2, 8)
    assert (plan.outline.longest(0, 2), plan.outline.longest(1, 2), plan.outline.longest(2, 2)) == (5, 3, 0)
    assert tables.input_ids.tolist() == [4, 5, 6, 7, 8, 1, 2, 3, 7, 9]
    assert tables.positions.tolist() == [0, 1, 2, 3, 4, 4, 5, 6, 8, 2]
    assert tables.slots.tolist() == [40, 41, 42, 43, 44, 8, 9, 10, 20, 34]
    assert tables.lengths.tolist() == [9, 3]
    assert tables.starts.tolist() == [0, 5, 8]
    assert tables.first_positions.tolist() == [0, 4]
    assert (tables.later_starts.tolist(), tables.later_positions.tolist()) == ([5, 8], [4])
    assert tables.sampled.tolist() == [8, 4, 9]  # in the order of the rows that sample
    assert tables.fresh_pages.tolist() == [10, 11, 2, 5]
    assert tables.page_table[:, :3].tolist() == [[10, 11, 0], [6, 2, 0], [3, 9, 5], [8, 0, 0]]
    assert tables.page_table.shape == (4, 16)


@st.composite
def steps(draw: st.DrawFn) -> list[Row]:
    counts = draw(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 40), st.booleans()), max_size=8))
    free = iter(draw(st.permutations(range(8 * 13))))
    return [
        Row(list(range(n)), start, [next(free) for _ in range(LAYOUT.pages_for(start + n))], SPEC if samples else None)
        for n, start, samples in counts
    ]


@given(steps())
def test_every_token_is_where_its_row_says(rows: list[Row]) -> None:
    plan = tabulate(rows, LAYOUT)
    wanted = {
        (token, start + i, row.pages[(start + i) // 4] * 4 + (start + i) % 4)
        for row in rows
        for start in [row.start]
        for i, token in enumerate(row.token_ids)
    }
    tables = plan.tables
    columns = (tables.input_ids, tables.positions, tables.slots)
    given_tokens = list(zip(*(column.tolist() for column in columns), strict=True))
    assert len(given_tokens) == len(wanted)
    assert set(given_tokens) == wanted
    chunks = [slice(*pair) for pair in pairwise(plan.outline.starts)]
    assert all(given_tokens[chunk][0][1] == at for chunk, at in zip(chunks, tables.first_positions, strict=True))
    assert (tables.positions[plan.outline.chunk_tokens :] + 1 == tables.lengths).all()
    last_slots = [row.pages[(row.end - 1) // 4] * 4 + (row.end - 1) % 4 for row in rows if row.sample]
    assert tables.slots[tables.sampled].tolist() == last_slots


def test_rows_of_padding_read_and_write_nothing() -> None:
    plan = tabulate([MIXED[0], MIXED[3]], LAYOUT)
    tables = padded(plan.tables, 4)
    assert tables.slots.tolist() == [20, 34, -1, -1]
    assert tables.lengths.tolist() == [9, 3, 0, 0]
    assert (tables.input_ids.tolist(), tables.positions.tolist()) == ([7, 9, 0, 0], [8, 2, 0, 0])
    assert tables.lengths.dtype == plan.tables.lengths.dtype
    assert padded(plan.tables, 2).slots.tolist() == plan.tables.slots.tolist()


def test_a_row_without_room_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        tabulate([Row([1, 2], 3, [0], None)], LAYOUT)


def test_page_tables_are_wide_in_steps() -> None:
    assert [columns_for(tokens, LAYOUT) for tokens in (0, 1, 64, 65)] == [0, 16, 16, 32]


def named(tables: Any) -> dict[str, Any]:
    return {name: getattr(tables, name) for name in tables.__slots__}


@pytest.mark.parametrize("rows", [MIXED, MIXED[:1], []], ids=["mixed", "decode", "nothing"])
def test_what_is_staged_arrives_again_and_again(rows: list[Row]) -> None:
    plans = [tabulate(part, LAYOUT) for part in (rows, MIXED[1:], rows, MIXED[2:])]
    stage = Stage(CPU, max(packed_bytes(plan.tables) for plan in plans))
    for plan in plans:
        arrived = named(stage.upload(plan.tables))
        for name, array in named(plan.tables).items():
            assert np.array_equal(arrived[name].numpy(), array), name
            assert arrived[name].numpy().dtype == array.dtype, name


def test_steps_of_as_many_decode_rows_share_their_memory_whatever_their_pages() -> None:
    short = tabulate([Row([1], 0, [5], SPEC), Row([2], 3, [4], None)], LAYOUT)
    long = tabulate([Row([3], 79, range(20), SPEC)], LAYOUT)
    stage = Stage(CPU, decode_room(4, 32))
    first, second = (stage.upload(padded(plan.tables, 4)) for plan in (short, long))
    for name in ("input_ids", "positions", "slots", "lengths"):
        assert getattr(first, name).data_ptr() == getattr(second, name).data_ptr()


@given(st.integers(1, 40), st.integers(1, 300))
def test_there_is_room_for_any_decode_step(rows: int, length: int) -> None:
    plan = tabulate([Row([1], length - 1, range(100), SPEC)] * rows, LAYOUT)
    assert packed_bytes(plan.tables) <= decode_room(rows, columns_for(length, LAYOUT))


def test_rows_that_follow_are_told_from_those_that_are_known() -> None:
    follower = Row([0], 9, (7, 8, 9), SPEC, follows=3)
    tables = tabulate([follower, *MIXED, Row([0], 3, [4], None, follows=0)], LAYOUT).tables
    assert (tables.followers.tolist(), tables.followed.tolist()) == ([8, 11], [3, 0])
    assert tables.positions[tables.followers].tolist() == [9, 3]
    with pytest.raises(ValueError, match="follows one sample"):
        tabulate([Row([1, 2], 0, [1], SPEC, follows=0)], LAYOUT)
