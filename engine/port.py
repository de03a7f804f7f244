"""What does a worker ask of an engine?

Two implementations: `engine.core.TorchEngine` and `engine.fake.FakeEngine`. All methods that touch pages run on the
worker's one engine thread. The engine owns no request: pages come from the worker's allocator, rows describe one step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.layout import KvLayout
from runtime.buffers import Region
from runtime.description import ModelInfo, PoolInfo
from runtime.params import SamplingParams
from runtime.tokens import SampledToken


@dataclass(frozen=True, slots=True)
class SampleSpec:
    """How to choose the token after a row.

    Attributes:
        index: which output token this will be, from 0; with the seed it decides the draw.
        prompt: the request's prompt token ids, for the penalties.
        output: the token ids generated so far, `index` of them.
    """

    params: SamplingParams
    index: int
    prompt: Sequence[int]
    output: Sequence[int]


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence's share of a step: feed `token_ids` at positions `start`, `start + 1`, ... into `pages`.

    A prefill chunk has many tokens, a decode step one. `pages` hold the sequence from position 0 on and have room for
    `start + len(token_ids)` tokens. `sample` is None for a chunk that does not end its prompt.
    """

    token_ids: Sequence[int]
    start: int
    pages: Sequence[int]
    sample: SampleSpec | None


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

    def forward(self, rows: Sequence[Row]) -> list[SampledToken | None]:
        """One step over a mixed batch; one result per row, None where `sample` is None.

        Numbers of one row do not depend on the other rows beyond floating-point rounding.
        """
        ...

    def digest(self, pages: Sequence[int]) -> bytes:
        """8 bytes per page, a function of the bytes of that page alone (its position in `pages` does not matter)."""
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
