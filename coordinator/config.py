"""What has to be known to start a coordinator?"""

from msgspec import Struct


class CoordinatorConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    run_dir: str  # private directory of this cell, removed if the launcher dies
    parent_pid: int
    client_endpoint: str
    worker_endpoint: str
    launcher_endpoint: str
    model: str  # what clients call it
    tokenizer_dir: str | None  # None: bytes are tokens (the fake engine)
    prefill_workers: int
    decode_workers: int
    request_timeout_s: float = 600.0
    client_timeout_s: float = 6.0
    client_stall_s: float = 30.0  # a client that reads nothing for this long is dropped
    worker_heartbeat_s: float = 0.5
    worker_timeout_s: float = 4.0
    max_queued_requests: int = 1024
    max_queued_tokens: int = 1 << 20
    max_requests_per_client: int = 1024
    worker_absence_s: float = 30.0
    prefill_backlog_tokens: int = 4096
    stall_s: float = 120.0  # no worker makes progress for so long while requests wait: the cell is ill
    log_level: str = "INFO"
