"""What would an engine answer whose every token can be computed by hand?

`next = 97 + (weight + sum of all tokens so far) % 26`: a lower-case letter, as a byte. The "KV cache" is the token ids
themselves, written into real pages, and the sum is taken over the *pages*, so a hand-off that loses or corrupts a page
changes the answer. Prefill and decode workers of a test get different weights, so that a test sees which side made a
token. Used by `kvrelay up --mock` and by the tests; needs no model and no torch.
"""

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.layout import KvLayout
from engine.port import EndedStep, GrammarError, Matcher, NoMatcher, PendingStep, Row, RowFailed, RowResult
from runtime.buffers import Region
from runtime.tokens import SampledToken, TokenLogprobs

VOCAB_SIZE = 256
END_OF_TEXT = 4  # ASCII EOT
_WORD_BYTES = 8


def fake_layout(page_tokens: int, kv_bytes_per_token: int) -> KvLayout:
    """`kv_bytes_per_token` (a multiple of 16) sets how much a hand-off moves; 8 bytes of them carry meaning."""
    return KvLayout(
        layers=1,
        page_tokens=page_tokens,
        kv_heads=1,
        head_dim=kv_bytes_per_token // (2 * _WORD_BYTES),
        dtype="int64",
        dtype_bytes=_WORD_BYTES,
        model="fake",
    )


class FakeEngine:
    """An `EnginePort`. `step_s` is slept per forward and `token_s` per token fed, to imitate an engine's speed."""

    runs_ahead = False

    def __init__(
        self,
        layout: KvLayout,
        total_pages: int,
        *,
        weight: int = 0,
        max_model_len: int = 4096,
        step_s: float = 0.0,
        token_s: float = 0.0,
    ) -> None:
        self.layout = layout
        self.total_pages = total_pages
        self.model_name = "fake"
        self.vocab_size = VOCAB_SIZE
        self.max_model_len = max_model_len
        self.eos_token_ids = (END_OF_TEXT,)
        self._weight = weight
        self._step_s = step_s
        self._token_s = token_s
        words = layout.page_bytes // _WORD_BYTES // layout.page_tokens
        self._pool: NDArray[np.int64] = np.zeros((total_pages, layout.page_tokens, words), dtype=np.int64)
        self._chosen: list[int] = []  # of the rows that sampled in the last step

    def matcher(self, grammar: str) -> Matcher:  # noqa: ARG002 - it has none
        return NoMatcher("the mock engine knows no grammars")

    def begin(self, rows: Sequence[Row]) -> PendingStep:
        if self._step_s or self._token_s:
            time.sleep(self._step_s + self._token_s * sum(len(row.token_ids) for row in rows))
        results = [self._row(row) for row in rows]
        samples = [result for result in results if result is not None]
        self._chosen = [0 if isinstance(sample, RowFailed) else sample.token_id for sample in samples]
        return EndedStep(results)

    def forward(self, rows: Sequence[Row]) -> list[RowResult]:
        return self.begin(rows).results()

    def _row(self, row: Row) -> RowResult:
        size = self.layout.page_tokens
        token_ids = row.token_ids if row.follows is None else [self._chosen[row.follows]]
        for position, token in enumerate(token_ids, row.start):
            self._pool[row.pages[position // size], position % size, :] = token
        if row.sample is None:
            return None
        if row.sample.matcher is not None:
            try:
                row.sample.matcher.allowed(row.sample.output)
            except GrammarError as error:
                return RowFailed(str(error))
        length = row.start + len(row.token_ids)
        context = self._pool[list(row.pages[: self.layout.pages_for(length)]), :, -1].reshape(-1)[:length]
        token = 97 + (self._weight + int(context.sum())) % 26
        asked = row.sample.params.logprobs
        # It knows one answer and is certain of it.
        return SampledToken(token, None if asked is None else TokenLogprobs(0.0, ((token, 0.0),) if asked else ()))

    def digest(self, pages: Sequence[int]) -> bytes:
        words = self._pool[list(pages)].reshape(len(pages), self.layout.page_bytes // _WORD_BYTES)
        weights = np.arange(1, 2 * words.shape[1], 2, dtype=np.int64)
        return bytes((words * weights).sum(axis=1, dtype=np.int64).tobytes())

    def regions(self, pages: Sequence[int]) -> tuple[Region, ...]:
        base, size = self._pool.ctypes.data, self.layout.page_bytes
        runs: list[Region] = []
        for page in pages:
            address = base + page * size
            if runs and runs[-1].address + runs[-1].nbytes == address:
                runs[-1] = Region(runs[-1].address, runs[-1].nbytes + size)
            else:
                runs.append(Region(address, size))
        return tuple(runs)

    def memcpy_gigabytes_per_s(self) -> float:
        source = np.ones(8 << 20, dtype=np.uint8)
        target = np.zeros_like(source)
        start = time.perf_counter()
        np.copyto(target, source)
        return source.nbytes / (time.perf_counter() - start) / 1e9


def fake_tokens(prompt: Sequence[int], count: int, *, prefill_weight: int = 0, decode_weight: int = 0) -> list[int]:
    """What a cluster of fake engines answers to `prompt`; the oracle of the tests."""
    tokens: list[int] = []
    total = sum(prompt)
    for index in range(count):
        weight = prefill_weight if index == 0 else decode_weight
        tokens.append(97 + (weight + total) % 26)
        total += tokens[-1]
    return tokens
