"""What does one engine load, and how much memory may its pages take?

Read once by a worker's `__main__`, never changed. `engine.core.open_engine` acts on it.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

LoadFormat = Literal["auto", "dummy"]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]


class EngineConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="torch"):
    """Exactly one of `pool_pages` and `pool_bytes` is given; bytes are rounded down to whole pages."""

    model: Annotated[str, Meta(min_length=1)]  # a hub id or a local directory
    load_format: LoadFormat = "auto"  # dummy: the architecture of `model` with random weights drawn from `seed`
    dtype: DtypeName = "auto"  # of weights and KV; auto: float32 on a CPU, the checkpoint's own on CUDA
    device: Annotated[str, Meta(pattern=r"^(cpu|cuda:\d+)$")] = "cpu"
    threads: Annotated[int, Meta(ge=1, le=1024)] | None = None  # CPU threads of one forward; None: torch's choice
    page_tokens: Annotated[int, Meta(ge=1, le=4096)] = 16
    pool_pages: Annotated[int, Meta(ge=1)] | None = None
    pool_bytes: Annotated[int, Meta(ge=1)] | None = None
    neighbour_pages: tuple[Annotated[int, Meta(ge=1)], ...] = ()  # pools of the cell's other workers on the same GPU
    max_model_len: Annotated[int, Meta(ge=2)] | None = None  # None: the model's context
    seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] = 0
    max_batch: Annotated[int, Meta(ge=1)] = 64  # sequences in one decode step; more are only slower
    graphs: bool = True  # on CUDA, decode steps are captured at start and replayed

    def __post_init__(self) -> None:
        if (self.pool_pages is None) == (self.pool_bytes is None):
            raise ValueError("give either pool_pages or pool_bytes")


class FakeEngineConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="fake"):
    """The hand-computable engine of `kvrelay up --mock` and of the tests (`engine.fake`)."""

    page_tokens: Annotated[int, Meta(ge=1, le=4096)] = 16
    pool_pages: Annotated[int, Meta(ge=1)] = 1024
    kv_bytes_per_token: Annotated[int, Meta(ge=16, multiple_of=16)] = 1024
    max_model_len: Annotated[int, Meta(ge=2)] = 4096
    weight: int = 0
    step_s: Annotated[float, Meta(ge=0.0)] = 0.0
    token_s: Annotated[float, Meta(ge=0.0)] = 0.0


AnyEngineConfig = EngineConfig | FakeEngineConfig
