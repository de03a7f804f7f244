"""What has to be known to start a decode worker?"""

from msgspec import Struct

from engine.config import AnyEngineConfig


class DecodeConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    worker_id: str
    coordinator: str  # ZeroMQ endpoint of the worker link
    run_dir: str  # private directory of this cell
    parent_pid: int
    cores: tuple[int, ...]  # this process runs on these
    engine: AnyEngineConfig
    max_batch: int = 64  # sequences in one decode step
    chunk_tokens: int  # token budget of a step, for the prompts that are computed here
    mixed_chunk_tokens: int  # the same of a step in which somebody decodes, who waits for it
    transfer_timeout_s: float = 30.0
    log_level: str = "INFO"
