"""How does a worker describe its model and its pool to the others?"""

from typing import Annotated

from msgspec import Meta, Struct

from runtime.params import TokenId


class ModelInfo(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the coordinator has to know of the model; equal on all workers of a cell."""

    name: Annotated[str, Meta(max_length=512)]
    vocab_size: Annotated[int, Meta(ge=1, lt=1 << 31)]
    max_model_len: Annotated[int, Meta(ge=1, lt=1 << 31)]  # prompt and output tokens together
    eos_token_ids: Annotated[tuple[TokenId, ...], Meta(max_length=1024)]


class PoolInfo(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A worker's KV pool. Only workers with equal fingerprints may exchange pages."""

    fingerprint: Annotated[str, Meta(max_length=256)]
    page_tokens: Annotated[int, Meta(ge=1, le=4096)]
    page_bytes: Annotated[int, Meta(ge=1, lt=1 << 48)]
    total_pages: Annotated[int, Meta(ge=1, lt=1 << 31)]
