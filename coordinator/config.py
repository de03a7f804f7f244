"""What has to be known to start a coordinator?"""

import ipaddress
from typing import Annotated, Literal

from msgspec import Meta, Struct

_Seconds = Annotated[float, Meta(gt=0.0, le=86400.0)]
_Count = Annotated[int, Meta(ge=1, lt=1 << 31)]


class RequestLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of requests, whichever front they come through."""

    max_queued_requests: _Count = 1024
    max_queued_tokens: _Count = 1 << 20
    max_prompt_tokens: _Count | None = None  # None: what the context has room for
    max_output_tokens: _Count | None = None
    request_timeout_s: _Seconds = 600.0


class HttpLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of the HTTP front; what exceeds one is refused with a status of its own and counted."""

    max_connections: _Count = 2048
    max_head_bytes: _Count = 64 << 10  # of a request's line and headers: 431
    max_body_bytes: _Count = 8 << 20  # 413
    head_timeout_s: _Seconds = 10.0  # from the connection, or the first byte of a later request, to the end of its head
    body_timeout_s: _Seconds = 20.0  # of silence inside a body: 408
    idle_timeout_s: _Seconds = 75.0  # between two requests of a connection
    max_choices: _Count = 128  # prompts times n of one request
    max_n: _Count = 8  # answers to one prompt
    keep_alive_s: _Seconds = 15.0  # silence after which a stream gets a comment line
    requests_per_minute: Annotated[float, Meta(ge=0.0)] = 0.0  # of each API key, or of everybody without one; 0: any
    stall_s: _Seconds = 30.0  # a client that takes nothing of its answer for so long is cut off


DEFAULT_HTTP_PORT = 8000


class HttpConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The HTTP front. API keys are known by their SHA-256 only."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = DEFAULT_HTTP_PORT  # 0: any free one
    api_key_digests: tuple[str, ...] = ()  # hexadecimal; none: no key is asked for
    allowed_hosts: tuple[str, ...] | None = None  # of the Host header; None: any
    metrics_compat: Literal["", "vllm"] = ""
    limits: HttpLimits = HttpLimits()

    def __post_init__(self) -> None:
        if not self.api_key_digests and not is_loopback(self.host):
            raise ValueError(
                f"listening on {self.host} lets anybody in: set an API key (KVRELAY_API_KEY), or listen on 127.0.0.1"
            )


def without_port(host: str) -> str:
    """The name in a host that may have a port behind it; `[::1]` keeps its brackets."""
    return host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]


def is_loopback(host: str) -> bool:
    """Only this machine can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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
    http: HttpConfig | None = None
    requests: RequestLimits = RequestLimits()
    client_timeout_s: float = 6.0
    client_stall_s: float = 30.0  # a client that reads nothing for this long is dropped
    worker_heartbeat_s: float = 0.5
    worker_timeout_s: float = 4.0
    max_requests_per_client: int = 1024
    worker_absence_s: float = 30.0
    prefill_backlog_tokens: int = 4096
    aggregated: bool = False  # decode workers compute every prompt themselves, and there are no prefill workers
    local_prompt_tokens: int = 0  # prompts up to this length are computed by their decode worker
    local_backlog_tokens: int = 1024  # while it owes fewer prompt tokens than this
    stall_s: float = 120.0  # no progress for so long while requests wait: ill; one CPU prompt may take half a minute
    log_level: str = "INFO"
