"""What does a worker ask of an engine?

Two implementations: `engine.core.TorchEngine` and `engine.fake.FakeEngine`. All methods that touch pages run on the
worker's one engine thread. The engine owns no request: pages come from the worker's allocator, rows describe one step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engine.layout import KvLayout
from runtime.buffers import Region
from runtime.description import ModelInfo, PoolInfo
from runtime.params import SamplingParams
from runtime.tokens import SampledToken

TokenMask = NDArray[np.int32]
"""One bit per token of the vocabulary, the lowest first; at least one is set, none beyond the vocabulary."""


class GrammarError(Exception):
    """One request's answer cannot go on within its grammar; the text quotes neither of them."""


class Matcher(Protocol):
    """One request's place in its grammar. Engine thread only, after it was made."""

    def allowed(self, output: Sequence[int]) -> TokenMask:
        """The tokens that may follow `output`, a function of it and of the grammar; only its new tokens are looked at.

        Behind the end of the grammar that is the end of sequence alone.

        Raises:
            GrammarError: `output` does not fit, nothing may follow it, or to find out would take too long.
        """
        ...


@dataclass(frozen=True, slots=True)
class NoMatcher:
    """The matcher of an engine that knows no grammars: it fails the request; the coordinator lets none come here."""

    reason: str

    def allowed(self, output: Sequence[int]) -> TokenMask:
        raise GrammarError(f"at token {len(output) + 1}: {self.reason}")


@dataclass(frozen=True, slots=True)
class SampleSpec:
    """How to choose the token after a row.

    Attributes:
        index: which output token this will be, from 0; with the seed it decides the draw.
        prompt: the request's prompt token ids, for the penalties.
        output: the token ids generated so far, `index` of them; without the newest one where the row `follows`.
        matcher: of the request's grammar; None where it has none.
    """

    params: SamplingParams
    index: int
    prompt: Sequence[int]
    output: Sequence[int]
    matcher: Matcher | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence's share of a step: feed `token_ids` at positions `start`, `start + 1`, ... into `pages`.

    A prefill chunk has many tokens, a decode step one. `pages` hold the sequence from position 0 on and have room for
    `start + len(token_ids)` tokens. `sample` is None for a chunk that does not end its prompt.

    `follows`: the one token to feed is not on the host yet. It is the sample of that place, counted over the rows that
    sampled, of the step that was begun just before; `token_ids` holds any number in its stead. Only where
    `SamplingParams.reads_output` is false.
    """

    token_ids: Sequence[int]
    start: int
    pages: Sequence[int]
    sample: SampleSpec | None
    follows: int | None = None

    @property
    def end(self) -> int:
        """The position behind the last token."""
        return self.start + len(self.token_ids)


@dataclass(frozen=True, slots=True)
class RowFailed:
    """No token for this row, and there will be none: its request ends with `reason`; the other rows are as ever."""

    reason: str


RowResult = SampledToken | RowFailed | None
"""None for a row that does not sample."""


class PendingStep(Protocol):
    """A step that an engine has begun."""

    def results(self) -> list[RowResult]:
        """Wait for the end of the step: one result per row, None where `sample` is None. On any one thread, once.

        On return the pages of its rows may be moved: their bytes are in memory.

        Raises:
            Exception: the engine's state is unknown from now on.
        """
        ...


@dataclass(frozen=True, slots=True)
class EndedStep:
    """The `PendingStep` of an engine that had computed when `begin` returned."""

    rows: list[RowResult]

    def results(self) -> list[RowResult]:
        return self.rows


class EnginePort(Protocol):
    @property
    def layout(self) -> KvLayout: ...

    @property
    def total_pages(self) -> int: ...

    @property
    def model_name(self) -> str: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def max_model_len(self) -> int:
        """Prompt and output tokens together."""
        ...

    @property
    def eos_token_ids(self) -> tuple[int, ...]: ...

    @property
    def runs_ahead(self) -> bool:
        """Whether `begin` returns long before its step has ended, so that the next one can be begun meanwhile."""
        ...

    def matcher(self, grammar: str) -> Matcher:
        """For one request. Does no work, so that any thread may call it: a grammar that cannot be built, or an engine
        that has none, shows at the first `allowed`."""
        ...

    def begin(self, rows: Sequence[Row]) -> PendingStep:
        """Begin one step over a mixed batch. It computes after the steps that were begun before it.

        Numbers of one row do not depend on the other rows beyond floating-point rounding.

        Raises:
            ValueError: a row does not fit its pages, or follows what is not there: a mistake of the caller.
        """
        ...

    def forward(self, rows: Sequence[Row]) -> list[RowResult]:
        """One step from its begin to its end: `begin(rows).results()`."""
        ...

    def digest(self, pages: Sequence[int]) -> bytes:
        """8 bytes per page, a function of the bytes of that page alone (its position in `pages` does not matter).

        No step that is under way writes to `pages`, and the digest waits for none.
        """
        ...

    def regions(self, pages: Sequence[int]) -> tuple[Region, ...]:
        """The memory of `pages` in this order, contiguous neighbours merged."""
        ...

    def memcpy_gigabytes_per_s(self) -> float:
        """The rate of one copy inside the pool's memory, measured now: what a transfer is compared with."""
        ...


def model_info(engine: EnginePort) -> ModelInfo:
    return ModelInfo(
        name=engine.model_name,
        vocab_size=engine.vocab_size,
        max_model_len=engine.max_model_len,
        eos_token_ids=engine.eos_token_ids,
    )


def pool_info(engine: EnginePort) -> PoolInfo:
    return PoolInfo(
        fingerprint=engine.layout.fingerprint,
        page_tokens=engine.layout.page_tokens,
        page_bytes=engine.layout.page_bytes,
        total_pages=engine.total_pages,
    )
