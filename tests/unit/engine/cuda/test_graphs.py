"""Does a padded step that is replayed from static memory answer as its rows would?

What is captured here is called again instead: it reads the same memory as a CUDA graph would.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from engine.cuda.graphs import CaptureFailed, DecodeGraphs, buckets
from engine.cuda.tables import DeviceTables, Outline, tabulate
from engine.layout import KvLayout
from engine.port import Row, SampleSpec
from runtime.params import SamplingParams

LAYOUT = KvLayout(layers=2, page_tokens=4, kv_heads=2, head_dim=8, dtype="float32", dtype_bytes=4, model="tiny")
SPEC = SampleSpec(SamplingParams(), 0, (), ())
MAX_MODEL_LEN = 70
CPU = torch.device("cpu")


def again(run: Callable[[], None]) -> Callable[[], None]:
    return run


class Forward:
    """Logits that tell all that a row's kernels would read: its token, slot, length, and the pages it sees."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.memory: dict[int, set[tuple[int, ...]]] = {}

    def __call__(self, outline: Outline, tables: DeviceTables) -> Tensor:
        assert (outline.chunks, outline.chunk_tokens) == (0, 0)
        rows = outline.decodes
        assert all(table.shape[0] == rows for table in (tables.input_ids, tables.slots, tables.page_table))
        self.sizes.append(rows)
        read = (tables.input_ids, tables.positions, tables.slots, tables.lengths, tables.page_table)
        self.memory.setdefault(rows, set()).add(tuple(table.data_ptr() for table in read))
        seen = torch.arange(tables.page_table.shape[1]) < (tables.lengths[:, None] + 3) // 4
        pages = (tables.page_table * seen).sum(-1)
        told = (tables.input_ids, tables.positions, tables.slots, tables.lengths, pages)
        return torch.stack([column.float() for column in told], dim=1).index_select(0, tables.sampled)


def captured(sizes: tuple[int, ...]) -> tuple[Forward, DecodeGraphs]:
    forward = Forward()
    graphs = DecodeGraphs(sizes, LAYOUT, MAX_MODEL_LEN, CPU)
    graphs.capture(forward, again)
    return forward, graphs


def row(token: int, start: int, first_page: int) -> Row:
    return Row([token], start, range(first_page, first_page + LAYOUT.pages_for(start + 1)), SPEC)


@pytest.mark.parametrize(
    ("max_batch", "sizes"),
    [
        (1, (1,)),
        (3, (1, 2, 3)),
        (16, (1, 2, 4, 8, 16)),
        (64, (1, 2, 4, 8, 16, 24, 32, 48, 64)),
        (100, (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 100)),
    ],
)
def test_buckets(max_batch: int, sizes: tuple[int, ...]) -> None:
    assert buckets(max_batch) == sizes


def test_the_next_larger_bucket_replays_a_step() -> None:
    _, graphs = captured((1, 2, 4, 6))
    chosen = [graphs.bucket(tabulate([row(1, 0, 0)] * n, LAYOUT)) for n in range(1, 8)]
    assert chosen == [1, 2, 4, 4, 6, 6, None]


def test_what_no_graph_was_captured_for_is_not_replayed() -> None:
    _, graphs = captured((4,))
    assert graphs.bucket(tabulate([row(1, 4 * 32 - 1, 0)], LAYOUT)) == 4
    assert graphs.bucket(tabulate([row(1, 4 * 32, 0)], LAYOUT)) is None
    assert graphs.bucket(tabulate([row(1, 3, 0), Row([1, 2], 0, [9], None)], LAYOUT)) is None


def test_buckets_are_captured_from_the_largest_on_after_they_have_run_once() -> None:
    forward, _ = captured((1, 2, 4))
    assert forward.sizes == [4, 2, 1]
    order: list[str] = []

    def run_once(outline: Outline, tables: DeviceTables) -> Tensor:
        order.append("ran")
        return Forward()(outline, tables)

    def record(run: Callable[[], None]) -> Callable[[], None]:
        order.append("captured")
        run()
        return run

    DecodeGraphs((1, 2), LAYOUT, MAX_MODEL_LEN, CPU).capture(run_once, record)
    assert order == ["ran", "captured", "ran"] * 2


def test_rows_answer_for_themselves_in_any_bucket_and_order() -> None:
    forward, graphs = captured((1, 2, 4))
    steps = [
        [row(5, 60, 7), row(6, 3, 40), row(7, 12, 50)],
        [row(8, 1, 2)],  # shorter than what was in its place of the page table before
        [row(9, 20, 30), row(4, 0, 1)],
        [row(3, 69, 3), row(2, 8, 60), row(1, 5, 70), row(0, 4, 80)],
        [row(8, 1, 2), row(7, 2, 3), row(6, 2, 4)],
    ]
    for step in steps:
        plan = tabulate(step, LAYOUT)
        bucket = graphs.bucket(plan)
        assert bucket is not None
        graphs.load(plan, bucket)
        logits = graphs.replay(bucket)
        assert logits.shape[0] == bucket
        expected = [
            [r.token_ids[0], r.start, r.pages[r.start // 4] * 4 + r.start % 4, r.end, sum(r.pages)] for r in step
        ]
        assert logits[: len(step)].tolist() == expected
        assert logits[len(step) :].tolist() == [[0, 0, -1, 0, 0]] * (bucket - len(step))
    assert all(len(places) == 1 for places in forward.memory.values())


def test_a_forward_that_waits_for_the_device_is_not_captured() -> None:
    def refuse(run: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing")

    graphs = DecodeGraphs((1, 2), LAYOUT, MAX_MODEL_LEN, CPU)
    with pytest.raises(CaptureFailed, match="a step of 2 rows: operation not permitted"):
        graphs.capture(Forward(), refuse)
