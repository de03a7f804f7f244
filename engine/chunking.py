"""Which prompt tokens does the next step compute?

Pure. Chunked prefill under a token budget (Sarathi-Serve, OSDI '24): first come, first served; a prompt longer than the
budget is computed in chunks, and what the budget has left goes to the prompts behind it. A prompt starts only when all
its pages are there, so a started prompt never waits for memory. Both workers plan with it: a prefill worker whole
steps, a decode worker what decoding leaves of a step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


class Prompt(Protocol):
    """What the planner has to know of a prompt; each worker remembers more of its own."""

    @property
    def tokens(self) -> Sequence[int]: ...

    @property
    def computed(self) -> int:
        """Tokens whose KV is in the pages."""
        ...

    @property
    def has_pages(self) -> bool:
        """Its pages are reserved: it has started, or may start whatever is free."""
        ...


P = TypeVar("P", bound=Prompt)


@dataclass(frozen=True, slots=True)
class Chunk(Generic[P]):
    """Tokens `start` .. `start + count` of a prompt; `last` when token 1 is sampled after it."""

    prompt: P
    start: int
    count: int

    @property
    def end(self) -> int:
        return self.start + self.count

    @property
    def last(self) -> bool:
        return self.end == len(self.prompt.tokens)


@dataclass(frozen=True, slots=True)
class ChunkLimits:
    tokens: int  # token budget of one step
    prompts: int  # rows of one step
    page_tokens: int


def next_chunks(prompts: Sequence[P], free_pages: int, limits: ChunkLimits) -> list[Chunk[P]]:
    """The chunks of the next step, in order of arrival; empty when there is nothing to compute.

    Args:
        prompts: all unfinished, uncancelled prompts in order of arrival.
        free_pages: what the pool can still give to prompts that have no pages yet.
    """
    chunks: list[Chunk[P]] = []
    budget = limits.tokens
    for prompt in prompts:
        if budget <= 0 or len(chunks) >= limits.prompts:
            break
        if not prompt.has_pages:
            needed = -(-len(prompt.tokens) // limits.page_tokens)
            if needed > free_pages:
                break  # those behind it may not overtake, or a long prompt would starve
            free_pages -= needed
        count = min(budget, len(prompt.tokens) - prompt.computed)
        chunks.append(Chunk(prompt, prompt.computed, count))
        budget -= count
    return chunks
