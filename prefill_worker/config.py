"""What has to be known to start a prefill worker?"""

from msgspec import Struct

from engine.config import AnyEngineConfig


class PrefillConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    worker_id: str
    coordinator: str  # ZeroMQ endpoint of the worker link
    run_dir: str  # private directory of this cell
    parent_pid: int
    cores: tuple[int, ...]  # this process runs on these
    engine: AnyEngineConfig
    chunk_tokens: int  # token budget of one prefill step
    max_prompts: int = 16  # prompts in one step
    transfer_timeout_s: float = 30.0
    log_level: str = "INFO"
