"""How do the lengths of a trace shrink until they fit a small model?

Pure. The unit is the block: 512 tokens of the trace become `block_tokens`, whole blocks and the rest of a prompt alike,
so prompts that shared blocks in the trace share the same part of themselves afterwards. Every scale is thus a multiple
of 1/512. What is still too long is cut at its end, where prompts differ; a report says how many there were.
"""

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta, Struct
from msgspec.structs import replace

from launch.evaluation.traces import TRACE_BLOCK_TOKENS, TraceRecord


class Scale(Struct, frozen=True, kw_only=True):
    block_tokens: Annotated[int, Meta(ge=1, le=TRACE_BLOCK_TOKENS)] = TRACE_BLOCK_TOKENS
    output_block_tokens: Annotated[int, Meta(ge=1, le=TRACE_BLOCK_TOKENS)] | None = None  # None: as the prompts
    context_tokens: Annotated[int, Meta(ge=2)] | None = None  # of the model; None: nothing is cut

    def apply(self, record: TraceRecord) -> TraceRecord:
        prompt, output = self._scaled(record)
        if self.context_tokens is not None:
            output = min(output, self.context_tokens - 1)
            prompt = min(prompt, self.context_tokens - output)
        return replace(record, prompt_tokens=prompt, output_tokens=output)

    def cuts(self, record: TraceRecord) -> bool:
        return self.context_tokens is not None and sum(self._scaled(record)) > self.context_tokens

    def notes(self, records: Sequence[TraceRecord]) -> tuple[str, ...]:
        """In words, what a report has to say about the lengths."""
        outputs = self.output_block_tokens or self.block_tokens
        notes = []
        if (self.block_tokens, outputs) != (TRACE_BLOCK_TOKENS, TRACE_BLOCK_TOKENS):
            notes.append(
                f"prompt lengths x {self.block_tokens}/{TRACE_BLOCK_TOKENS} ="
                f" {self.block_tokens / TRACE_BLOCK_TOKENS:.4g}, output lengths x {outputs}/{TRACE_BLOCK_TOKENS} ="
                f" {outputs / TRACE_BLOCK_TOKENS:.4g}, rounded up"
            )
        cut = sum(map(self.cuts, records))
        if cut:
            notes.append(f"{cut} of {len(records)} requests cut to {self.context_tokens} tokens of context")
        return tuple(notes)

    def _scaled(self, record: TraceRecord) -> tuple[int, int]:
        return (
            _shrunk(record.prompt_tokens, self.block_tokens),
            _shrunk(record.output_tokens, self.output_block_tokens or self.block_tokens),
        )


UNSCALED = Scale()


def fit(records: Sequence[TraceRecord], context_tokens: int, cover: float = 1.0) -> Scale:
    """The largest scale at which at least `cover` of all requests fit a context uncut; the rest is cut.

    Raises:
        ValueError: they do not fit at 1/512 either.
    """
    for block_tokens in range(TRACE_BLOCK_TOKENS, 0, -1):
        scale = Scale(block_tokens=block_tokens, context_tokens=context_tokens)
        if sum(map(scale.cuts, records)) <= (1.0 - cover) * len(records) + 1e-9:
            return scale
    raise ValueError(f"not even 1/{TRACE_BLOCK_TOKENS} of these lengths fits {context_tokens} tokens")


def _shrunk(tokens: int, block_tokens: int) -> int:
    """At least 1 of at least 1, and never falling where `tokens` rises."""
    blocks, rest = divmod(tokens, TRACE_BLOCK_TOKENS)
    return blocks * block_tokens + -(-rest * block_tokens // TRACE_BLOCK_TOKENS)
