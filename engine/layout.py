"""What does a page of the KV cache look like in memory?

Page-major: `[page][layer][k|v][token][kv_head][head_dim]`, one allocation. A page of all layers is one contiguous range
of bytes, so a hand-off moves few large ranges (ADR-0005; FlowKV, arXiv 2504.03775, reports what that is worth).
Torch-free, so that the fake engine and the tests can use it.
"""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KvLayout:
    """Shapes of one page; `dtype` is torch's name without the prefix, such as `float32`."""

    layers: int
    page_tokens: int
    kv_heads: int
    head_dim: int
    dtype: str
    dtype_bytes: int
    model: str

    @property
    def token_bytes(self) -> int:
        return self.layers * 2 * self.kv_heads * self.head_dim * self.dtype_bytes

    @property
    def page_bytes(self) -> int:
        return self.page_tokens * self.token_bytes

    @property
    def page_shape(self) -> tuple[int, int, int, int, int]:
        """[layer, k|v, token, kv_head, head_dim]."""
        return (self.layers, 2, self.page_tokens, self.kv_heads, self.head_dim)

    def pages_for(self, tokens: int) -> int:
        """How many pages hold `tokens` tokens."""
        return -(-tokens // self.page_tokens)

    @property
    def fingerprint(self) -> str:
        """Equal exactly when two workers' pages are interchangeable; checked at Hello and in every transfer."""
        text = f"v1 {self.model} {self.page_shape} {self.dtype}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]
