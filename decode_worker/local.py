"""Which tokens of its own prompts does a decode worker compute in the next step?

Pure. Whoever decodes is in every step, and has its share of the step's token budget first; prompts get chunks of what
is left (Sarathi-Serve, OSDI '24). So a stream waits for one chunk at most, and prompts go on however many streams there
are. A local prompt had its pages reserved when it came and never waits for memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from decode_worker.running import RunningSequence
from engine.chunking import Chunk, ChunkLimits, next_chunks
from engine.port import Matcher, Row, RowFailed, RowResult, SampleSpec
from runtime.stages import PrefillStages, with_chunk
from runtime.tokens import SampledToken
from transport.messages.worker import Serve


@dataclass(slots=True)
class LocalPrompt:
    """One prompt from Serve until its last chunk has been computed."""

    request: Serve
    pages: tuple[int, ...]
    arrived_at: float
    matcher: Matcher | None = None  # of the request's grammar
    computed: int = 0  # tokens whose KV is in the pages
    cancelled: bool = False
    started_at: float | None = None
    chunks: int = 0
    chunk_s: tuple[float, ...] = ()  # of the steps that held them, on the engine thread

    @property
    def request_id(self) -> int:
        return self.request.request_id

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.request.prompt

    @property
    def has_pages(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class StepBudget:
    rows: int  # sequences and prompts of one step
    tokens: int  # token budget of one step
    mixed_chunk_tokens: int  # of which prompts get this much, if anybody decodes

    def for_prompts(self, decoding: int) -> ChunkLimits:
        """What `decoding` rows leave. One token at least: otherwise a full batch would starve every prompt."""
        tokens = self.tokens - decoding
        if decoding:
            tokens = min(tokens, self.mixed_chunk_tokens)
        return ChunkLimits(max(tokens, 1), self.rows - decoding, page_tokens=1)


@dataclass(slots=True)
class LocalPrompts:
    """The prompts that are computed here, in order of arrival; owned by the decode worker's loop."""

    budget: StepBudget
    prompts: dict[int, LocalPrompt] = field(default_factory=dict)

    def accept(self, prompt: LocalPrompt) -> None:
        if prompt.request_id in self.prompts:
            raise AssertionError(f"request {prompt.request_id} was sent twice")
        self.prompts[prompt.request_id] = prompt

    def has_chunks(self, decoding: int) -> bool:
        """Whether a step of `decoding` rows would have chunks beside them."""
        return bool(self._next_chunks(decoding))

    def plan_chunks(self, decoding: int, now: float) -> list[Chunk[LocalPrompt]]:
        """The chunks beside `decoding` rows; none of them is of a cancelled prompt."""
        chunks = self._next_chunks(decoding)
        for chunk in chunks:
            prompt = chunk.prompt
            prompt.started_at = now if prompt.started_at is None else prompt.started_at
        return chunks

    def apply(
        self, chunks: Sequence[Chunk[LocalPrompt]], results: Sequence[RowResult], now: float, seconds: float
    ) -> tuple[list[tuple[RunningSequence, SampledToken | RowFailed]], list[LocalPrompt]]:
        """The sequences that begin after a step, each with what was drawn as its token 1, and the prompts that leave.

        `seconds`: of the step, on the engine thread.

        A prompt cancelled during the step leaves; its token is dropped.
        """
        begun: list[tuple[RunningSequence, SampledToken | RowFailed]] = []
        leaving: list[LocalPrompt] = []
        for chunk, result in zip(chunks, results, strict=True):
            prompt = chunk.prompt
            prompt.computed = chunk.end
            prompt.chunks += 1
            prompt.chunk_s = with_chunk(prompt.chunk_s, seconds)
            if prompt.cancelled:
                leaving.append(self.prompts.pop(prompt.request_id))
            elif result is not None:
                del self.prompts[prompt.request_id]
                begun.append((_sequence(prompt, now), result))
        return begun, leaving

    def drop_cancelled(self, request_id: int) -> LocalPrompt | None:
        """Between two steps: take a cancelled prompt out."""
        return self.prompts.pop(request_id, None)

    def _next_chunks(self, decoding: int) -> list[Chunk[LocalPrompt]]:
        waiting = [prompt for prompt in self.prompts.values() if not prompt.cancelled]
        return next_chunks(waiting, 0, self.budget.for_prompts(decoding))


def chunk_row(chunk: Chunk[LocalPrompt]) -> Row:
    prompt = chunk.prompt
    sample = SampleSpec(prompt.request.sampling, 0, prompt.tokens, (), prompt.matcher) if chunk.last else None
    return Row(prompt.tokens[chunk.start : chunk.end], chunk.start, prompt.pages, sample)


def _sequence(prompt: LocalPrompt, now: float) -> RunningSequence:
    started = now if prompt.started_at is None else prompt.started_at
    return RunningSequence(
        request=prompt.request,
        pages=prompt.pages,
        output=[],
        joined_at=now,
        prefill=PrefillStages(
            queue_s=started - prompt.arrived_at,
            compute_s=now - started,
            chunks=prompt.chunks,
            chunk_s=prompt.chunk_s,
        ),
        matcher=prompt.matcher,
    )
