"""Does a step say which token goes where, and who attends to whom?"""

import pytest
import torch

from engine.batch import BatchBuilder, ForwardBatch, Window
from engine.layout import KvLayout
from engine.port import Row, SampleSpec
from runtime.params import SamplingParams

LAYOUT = KvLayout(layers=3, page_tokens=4, kv_heads=2, head_dim=8, dtype="float32", dtype_bytes=4, model="tiny")
PLANES_PER_PAGE = 6
SPEC = SampleSpec(SamplingParams(), 0, (), ())


def build(*rows: Row, window: Window = None) -> ForwardBatch:
    return BatchBuilder(LAYOUT, frozenset({window}), torch.device("cpu")).build(rows)


def test_chunks_come_first_then_decode_rows_by_length_and_samples_in_the_callers_order() -> None:
    batch = build(
        Row([50], 9, (7, 8, 9), SPEC),
        Row([10, 11, 12], 4, (3, 1), None),
        Row([60], 2, (5,), SPEC),
        Row([20, 21], 0, (4,), SPEC),
    )
    assert batch.input_ids.tolist() == [[10, 11, 12, 20, 21, 60, 50]]
    assert batch.position_ids.tolist() == [[4, 5, 6, 0, 1, 2, 9]]
    assert batch.sampled.tolist() == [6, 5, 4]
    assert [(g.start, g.stop, g.rows, g.is_decode) for g in batch.groups[None]] == [
        (0, 3, 1, False),
        (3, 5, 1, False),
        (5, 7, 2, True),
    ]


def test_slots_follow_the_pages_and_pages_are_fresh_at_their_first_token() -> None:
    batch = build(
        Row([1, 2, 3, 4, 5, 6], 3, (9, 2, 5), None), Row([7], 8, (0, 1, 3), None), Row([8], 9, (4, 6, 7), None)
    )
    slots = [(page * PLANES_PER_PAGE * 4 + offset) for page, offset in ((9, 3), (2, 0), (2, 1), (2, 2), (2, 3), (5, 0))]
    assert batch.slots.tolist() == [*slots, 3 * PLANES_PER_PAGE * 4, 7 * PLANES_PER_PAGE * 4 + 1]
    assert batch.fresh_pages.tolist() == [2, 5, 3]


def test_a_prompts_first_chunk_attends_to_itself_without_a_mask() -> None:
    (group,) = build(Row([1, 2, 3, 4, 5], 0, (9, 2), None)).groups[None]
    assert group.planes is None
    assert group.mask is None
    assert group.is_causal


def test_a_later_chunk_sees_all_before_it() -> None:
    (group,) = build(Row([1, 2], 5, (9, 2), None)).groups[None]
    assert group.planes is not None
    assert group.planes.tolist() == [9 * PLANES_PER_PAGE, 2 * PLANES_PER_PAGE]
    assert group.keys == slice(0, 7)
    assert visible(group.mask) == [[1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1]]


def test_a_window_cuts_pages_and_masks_the_rest() -> None:
    (group,) = build(Row([1, 2, 3], 8, (9, 2, 5), None), window=3).groups[3]
    assert group.planes is not None
    assert group.planes.tolist() == [2 * PLANES_PER_PAGE, 5 * PLANES_PER_PAGE]  # token 6 is the first that 8 sees
    assert group.keys == slice(2, 7)
    assert visible(group.mask) == [[1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1]]


def test_one_decode_row_needs_no_mask() -> None:
    (group,) = build(Row([1], 9, (9, 2, 5), None), window=3).groups[3]
    assert group.planes is not None
    assert group.planes.tolist() == [2 * PLANES_PER_PAGE, 5 * PLANES_PER_PAGE]  # tokens 7, 8, 9
    assert group.keys == slice(3, 6)
    assert group.mask is None


def test_decode_rows_are_padded_with_pages_of_their_own() -> None:
    (group,) = build(Row([1], 5, (9, 2), None), Row([1], 8, (3, 4, 7), None)).groups[None]
    assert group.planes is not None
    assert (group.planes // PLANES_PER_PAGE).tolist() == [9, 2, 9, 3, 4, 7]
    assert visible(group.mask) == [[1] * 6 + [0] * 6, [1] * 9 + [0] * 3]


def test_rows_of_very_different_lengths_are_not_padded_to_each_other() -> None:
    lengths = [3, 5, 90, 95, 300]
    batch = build(*(Row([1], n - 1, range(LAYOUT.pages_for(n)), None) for n in lengths))
    assert [group.rows for group in batch.groups[None]] == [2, 2, 1]


def test_a_group_on_a_cpu_gathers_no_more_than_its_cache_holds() -> None:
    big = KvLayout(layers=2, page_tokens=16, kv_heads=8, head_dim=128, dtype="float32", dtype_bytes=4, model="big")
    builder = BatchBuilder(big, frozenset({None}), torch.device("cpu"))
    batch = builder.build([Row([1], 159, range(10), None) for _ in range(7)])
    assert [group.rows for group in batch.groups[None]] == [3, 3, 1]  # 10 pages of 128 KiB of keys and values each
    assert batch.gather_planes == 30


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(Row([], 0, (1,), None), id="no tokens"),
        pytest.param(Row([1], 4, (1,), None), id="no room"),
        pytest.param(Row([1], -1, (1,), None), id="negative"),
    ],
)
def test_a_row_that_does_not_fit_is_a_mistake(row: Row) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        build(row)


def visible(mask: torch.Tensor | None) -> list[list[int]]:
    assert mask is not None
    assert set(mask.flatten().tolist()) == {0.0, -torch.inf}
    return (mask == 0).int().flatten(0, -2).tolist()


def test_rows_that_follow_are_told_from_those_that_are_known() -> None:
    batch = build(
        Row([0], 9, (7, 8, 9), SPEC, follows=3),
        Row([60], 2, (5,), SPEC),
        Row([10, 11, 12], 4, (3, 1), None),
        Row([0], 3, (4,), None, follows=0),
    )
    assert batch.position_ids.tolist() == [[4, 5, 6, 2, 3, 9]]
    assert (batch.followers.tolist(), batch.followed.tolist()) == ([5, 4], [3, 0])
    assert (batch.followers.dtype, batch.followed.dtype) == (torch.int64, torch.int64)


def test_a_chunk_cannot_follow() -> None:
    with pytest.raises(ValueError, match="follows one sample"):
        build(Row([1, 2], 0, (1,), SPEC, follows=0))
