"""Does whoever decodes come first, and is every local prompt computed once, in order and in bounded chunks?"""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decode_worker.local import LocalPrompt, LocalPrompts, StepBudget, chunk_row
from decode_worker.running import row
from engine.chunking import Chunk
from engine.port import NoMatcher, RowFailed
from runtime.params import SamplingParams
from runtime.tokens import SampledToken
from transport.messages.worker import Serve

BUDGET = StepBudget(rows=4, tokens=10, mixed_chunk_tokens=6)


def prompt(request_id: int, tokens: int, arrived_at: float = 0.0) -> LocalPrompt:
    serve = Serve(
        request_id=request_id,
        prompt=tuple(range(100, 100 + tokens)),
        sampling=SamplingParams(max_tokens=4, seed=0),
        pages=3,
    )
    return LocalPrompt(serve, (7, 8, 9), arrived_at, NoMatcher("none"))


def local(*prompts: LocalPrompt, budget: StepBudget = BUDGET) -> LocalPrompts:
    made = LocalPrompts(budget)
    for one in prompts:
        made.accept(one)
    return made


def shape(chunks: Sequence[Chunk[LocalPrompt]]) -> list[tuple[int, int, int]]:
    return [(chunk.prompt.request_id, chunk.start, chunk.end) for chunk in chunks]


def results(chunks: Sequence[Chunk[LocalPrompt]]) -> list[SampledToken | None]:
    return [SampledToken(60) if chunk.last else None for chunk in chunks]


# --- the budget ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decoding", "tokens", "rows"),
    [(0, 10, 4), (1, 6, 3), (3, 6, 1), (4, 6, 0)],
)
def test_decode_takes_its_share_of_a_step_first(decoding: int, tokens: int, rows: int) -> None:
    limits = BUDGET.for_prompts(decoding)
    assert (limits.tokens, limits.prompts) == (tokens, rows)


def test_a_batch_as_large_as_the_budget_leaves_a_prompt_one_token_and_not_none() -> None:
    assert StepBudget(rows=64, tokens=10, mixed_chunk_tokens=6).for_prompts(9).tokens == 1
    assert StepBudget(rows=64, tokens=10, mixed_chunk_tokens=6).for_prompts(30).tokens == 1
    assert StepBudget(rows=64, tokens=10, mixed_chunk_tokens=0).for_prompts(1).tokens == 1


# --- planning --------------------------------------------------------------------------------------------------------


def test_chunks_are_smaller_while_somebody_decodes() -> None:
    one = local(prompt(1, 25))
    seen = []
    for decoding in (0, 2, 0):
        chunks = one.plan_chunks(decoding, 1.0)
        seen += shape(chunks)
        one.apply(chunks, results(chunks), 2.0, 0.5)
    assert seen == [(1, 0, 10), (1, 10, 16), (1, 16, 25)]


def test_prompts_share_what_is_left_in_order_of_arrival() -> None:
    assert shape(local(prompt(3, 4), prompt(1, 30), prompt(2, 1)).plan_chunks(0, 1.0)) == [(3, 0, 4), (1, 0, 6)]


def test_a_cancelled_prompt_is_not_planned_and_leaves_after_its_step() -> None:
    one, two = prompt(1, 5), prompt(2, 5)
    both = local(one, two)
    one.cancelled = True
    assert shape(both.plan_chunks(0, 1.0)) == [(2, 0, 5)]
    one.cancelled = False
    chunks = both.plan_chunks(0, 1.0)
    one.cancelled = True
    begun, leaving = both.apply(chunks, results(chunks), 2.0, 0.5)
    assert [sequence.request_id for sequence, _ in begun] == [2]
    assert leaving == [one]
    assert not both.prompts


def test_between_two_steps_a_prompt_leaves_at_once() -> None:
    both = local(prompt(1, 5))
    assert both.drop_cancelled(1) is not None
    assert both.drop_cancelled(1) is None
    assert both.plan_chunks(0, 1.0) == []


def test_the_same_prompt_twice_is_a_broken_invariant() -> None:
    with pytest.raises(AssertionError, match="sent twice"):
        local(prompt(1, 5), prompt(1, 5))


# --- rows and token 1 ------------------------------------------------------------------------------------------------


def test_only_the_last_chunk_samples_and_the_matcher_goes_with_it() -> None:
    one = prompt(1, 12)
    made = local(one)
    (first,) = made.plan_chunks(0, 1.0)
    fed = chunk_row(first)
    assert (fed.token_ids, fed.start, fed.pages, fed.sample) == (tuple(range(100, 110)), 0, (7, 8, 9), None)
    made.apply([first], [None], 2.0, 0.5)
    (last,) = made.plan_chunks(0, 2.0)
    fed = chunk_row(last)
    assert (fed.token_ids, fed.start) == ((110, 111), 10)
    assert fed.sample is not None
    assert (fed.sample.index, fed.sample.output, fed.sample.matcher) == (0, (), one.matcher)


def test_a_computed_prompt_begins_as_a_sequence_with_its_times() -> None:
    one = prompt(1, 12, arrived_at=1.0)
    made = local(one)
    for start, end in ((3.0, 4.0), (5.0, 6.0)):
        chunks = made.plan_chunks(0, start)
        begun, _ = made.apply(chunks, results(chunks), end, 0.5)
    ((sequence, token),) = begun
    assert token == SampledToken(60)
    assert (sequence.output, sequence.pages, sequence.joined_at, sequence.matcher) == ([], (7, 8, 9), 6.0, one.matcher)
    assert sequence.prefill is not None
    assert (sequence.prefill.queue_s, sequence.prefill.compute_s, sequence.prefill.chunks) == (2.0, 3.0, 2)
    sequence.output.append(60)
    assert row(sequence).start == 12


def test_a_prompt_without_a_token_1_begins_with_the_reason() -> None:
    made = local(prompt(1, 3))
    chunks = made.plan_chunks(0, 1.0)
    ((sequence, failure),), _ = made.apply(chunks, [RowFailed("dead end")], 2.0, 0.5)
    assert failure == RowFailed("dead end")
    assert sequence.stages().steps == 0


# --- a worker's whole life -------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 6)), min_size=1, max_size=8),
    st.lists(st.integers(0, 6), min_size=1, max_size=30),
    st.builds(StepBudget, rows=st.integers(7, 9), tokens=st.integers(1, 20), mixed_chunk_tokens=st.integers(1, 20)),
)
def test_every_token_of_every_prompt_is_computed_once_in_order_and_within_the_budget(
    arrivals: list[tuple[int, int]], decoding: list[int], budget: StepBudget
) -> None:
    coming = sorted((step, request_id, tokens) for request_id, (tokens, step) in enumerate(arrivals))
    made, number = LocalPrompts(budget), 0
    computed: dict[int, list[int]] = {request_id: [] for _, request_id, _ in coming}
    first_come = [request_id for _, request_id, _ in coming]
    done: list[int] = []
    while coming or made.prompts:
        while coming and coming[0][0] <= number:
            _, request_id, tokens = coming.pop(0)
            made.accept(prompt(request_id, tokens))
        rows = decoding[number % len(decoding)]
        chunks = made.plan_chunks(rows, float(number))
        assert len(chunks) + rows <= budget.rows
        spent = sum(chunk.count for chunk in chunks)
        assert spent <= (max(min(budget.tokens - rows, budget.mixed_chunk_tokens), 1) if rows else budget.tokens)
        assert spent > 0 or not made.prompts, "a prompt waits for nobody"
        for chunk in chunks:
            computed[chunk.prompt.request_id] += chunk_row(chunk).token_ids
        begun, _ = made.apply(chunks, results(chunks), float(number), 0.5)
        done += [sequence.request_id for sequence, _ in begun]
        number += 1
        assert number < 1000, "a prompt starves"
    assert done == first_come
    for request_id, (tokens, _) in enumerate(arrivals):
        assert computed[request_id] == list(range(100, 100 + tokens))
