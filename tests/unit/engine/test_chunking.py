"""Does a step compute what a plain token-by-token planner would, and every prompt once and in order?"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from engine.chunking import Chunk, ChunkLimits, next_chunks

PAGE = 4
LIMITS = ChunkLimits(tokens=10, prompts=3, page_tokens=PAGE)


@dataclass
class Prompt:
    request_id: int
    tokens: tuple[int, ...]
    computed: int
    has_pages: bool


def prompt(request_id: int, tokens: int, *, computed: int = 0) -> Prompt:
    """`computed` tokens have been computed; a prompt with any has its pages."""
    return Prompt(request_id, tuple(range(tokens)), computed, has_pages=computed > 0)


def pages(item: Prompt) -> int:
    return -(-len(item.tokens) // PAGE)


def shape(chunks: Sequence[Chunk[Prompt]]) -> list[tuple[int, int, int]]:
    return [(chunk.prompt.request_id, chunk.start, chunk.end) for chunk in chunks]


# --- the policy, by example ------------------------------------------------------------------------------------------


def test_a_long_prompt_is_computed_in_chunks_of_the_budget() -> None:
    long = prompt(1, 25)
    seen = []
    for _ in range(3):
        (chunk,) = next_chunks([long], 100, LIMITS)
        seen.append((chunk.start, chunk.end, chunk.last))
        long.computed, long.has_pages = chunk.end, True
    assert seen == [(0, 10, False), (10, 20, False), (20, 25, True)]


def test_what_the_budget_has_left_goes_to_the_prompts_behind() -> None:
    assert shape(next_chunks([prompt(1, 25, computed=20), prompt(2, 3), prompt(3, 9)], 100, LIMITS)) == [
        (1, 20, 25),
        (2, 0, 3),
        (3, 0, 2),
    ]


def test_a_step_has_at_most_so_many_rows() -> None:
    assert shape(next_chunks([prompt(i, 1) for i in range(5)], 100, LIMITS)) == [(0, 0, 1), (1, 0, 1), (2, 0, 1)]


def test_a_prompt_starts_only_with_all_its_pages() -> None:
    assert next_chunks([prompt(1, 9)], 2, LIMITS) == []
    assert shape(next_chunks([prompt(1, 9)], 3, LIMITS)) == [(1, 0, 9)]


def test_a_prompt_that_waits_for_pages_is_not_overtaken() -> None:
    assert shape(next_chunks([prompt(1, 2), prompt(2, 9), prompt(3, 1)], 3, LIMITS)) == [(1, 0, 2)]


def test_a_started_prompt_needs_no_more_pages() -> None:
    assert shape(next_chunks([prompt(1, 9, computed=4)], 0, LIMITS)) == [(1, 4, 9)]


def test_nothing_to_do() -> None:
    assert next_chunks([], 100, LIMITS) == []


# --- against a planner that hands out one token at a time ------------------------------------------------------------


def one_by_one(prompts: Sequence[Prompt], free_pages: int, limits: ChunkLimits) -> Counter[int]:
    """Tokens per request of the next step, by the plainest planner there is."""
    step: Counter[int] = Counter()
    for _ in range(limits.tokens):
        for item in prompts:
            if item.computed + step[item.request_id] == len(item.tokens):
                continue  # complete: the next one's turn
            if step[item.request_id] == 0:
                if sum(count > 0 for count in step.values()) == limits.prompts:
                    break
                if not item.has_pages:
                    if pages(item) > free_pages:
                        break
                    free_pages -= pages(item)
            step[item.request_id] += 1
            break
    return +step


limits_ = st.builds(ChunkLimits, tokens=st.integers(1, 20), prompts=st.integers(1, 5), page_tokens=st.just(PAGE))


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 29)), max_size=8), st.integers(0, 20), limits_)
def test_one_step_is_what_the_plain_planner_gives(
    sizes: list[tuple[int, int]], free_pages: int, limits: ChunkLimits
) -> None:
    prompts = [prompt(i, tokens, computed=min(done, tokens - 1)) for i, (tokens, done) in enumerate(sizes)]
    chunks = next_chunks(prompts, free_pages, limits)
    assert {chunk.prompt.request_id: chunk.count for chunk in chunks} == one_by_one(prompts, free_pages, limits)
    assert [chunk.prompt.request_id for chunk in chunks] == list(range(len(chunks))), "first come, first served"
    assert all(chunk.start == chunk.prompt.computed for chunk in chunks)
    assert sum(chunk.count for chunk in chunks) <= limits.tokens
    assert len(chunks) <= limits.prompts


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 6)), min_size=1, max_size=12),
    st.integers(10, 20),
    limits_,
    st.sets(st.integers(0, 11)),
)
def test_every_token_of_every_prompt_is_computed_once_and_in_order(
    arrivals: list[tuple[int, int]], total_pages: int, limits: ChunkLimits, cancelled: set[int]
) -> None:
    """A worker's whole life: prompts arrive at steps, hold pages while they compute, some are cancelled half-way."""
    coming = sorted((step, request_id, tokens) for request_id, (tokens, step) in enumerate(arrivals))
    waiting: list[Prompt] = []
    computed: dict[int, list[int]] = {request_id: [] for _, request_id, _ in coming}
    free, steps = total_pages, 0
    while coming or waiting:
        while coming and coming[0][0] <= steps:
            _, request_id, tokens = coming.pop(0)
            waiting.append(prompt(request_id, tokens))
        for chunk in next_chunks(waiting, free, limits):
            item = chunk.prompt
            if not item.has_pages:
                item.has_pages = True
                free -= pages(item)
                assert free >= 0, "a prompt started without its pages"
            computed[item.request_id] += item.tokens[chunk.start : chunk.end]
            item.computed = chunk.end
            assert chunk.last == (item.computed == len(item.tokens))
            if chunk.last or item.request_id in cancelled:
                waiting.remove(item)
                free += pages(item)
        steps += 1
        assert steps < 1000, "a prompt starves"
    for request_id, (tokens, _) in enumerate(arrivals):
        got = computed[request_id]
        assert got == list(range(len(got)))
        assert len(got) == tokens or request_id in cancelled
    assert free == total_pages
