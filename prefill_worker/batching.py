"""Which prompt tokens does the next prefill step compute?

Pure. Chunked prefill under a token budget (Sarathi-Serve, OSDI '24): first come, first served; a prompt longer than the
budget is computed in chunks, and what the budget has left goes to the prompts behind it. A prompt starts only when all
its pages are there, so a started prompt never waits for memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.port import Matcher
from runtime.params import SamplingParams
from transport.messages.worker import Prefill


@dataclass(slots=True)
class Prompt:
    """One prompt at this worker, from Prefill until its last chunk has been computed."""

    request: Prefill
    arrived_at: float
    matcher: Matcher | None = None  # of the request's grammar
    pages: tuple[int, ...] = ()  # empty until it starts
    computed: int = 0  # tokens whose KV is in the pages
    cancelled: bool = False
    error: str | None = None  # why there is no token 1
    started_at: float | None = None
    chunks: int = 0
    digests: bytearray = field(default_factory=bytearray)

    @property
    def request_id(self) -> int:
        return self.request.request_id

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.request.prompt

    @property
    def sampling(self) -> SamplingParams:
        return self.request.sampling

    @property
    def started(self) -> bool:
        return self.started_at is not None


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens `start` .. `start + count` of a prompt; `last` when token 1 is sampled after it."""

    prompt: Prompt
    start: int
    count: int

    @property
    def end(self) -> int:
        return self.start + self.count

    @property
    def last(self) -> bool:
        return self.end == len(self.prompt.tokens)


@dataclass(frozen=True, slots=True)
class BatchLimits:
    chunk_tokens: int  # token budget of one step
    max_prompts: int  # rows of one step
    page_tokens: int


def next_batch(prompts: Sequence[Prompt], free_pages: int, limits: BatchLimits) -> list[Chunk]:
    """The chunks of the next step, in order of arrival; empty when there is nothing to compute.

    Args:
        prompts: all unfinished, uncancelled prompts in order of arrival.
        free_pages: what the pool can still give to prompts that have not started.
    """
    chunks: list[Chunk] = []
    budget = limits.chunk_tokens
    for prompt in prompts:
        if budget == 0 or len(chunks) == limits.max_prompts:
            break
        if not prompt.started:
            needed = -(-len(prompt.tokens) // limits.page_tokens)
            if needed > free_pages:
                break  # those behind it may not overtake, or a long prompt would starve
            free_pages -= needed
        count = min(budget, len(prompt.tokens) - prompt.computed)
        chunks.append(Chunk(prompt, prompt.computed, count))
        budget -= count
    return chunks
