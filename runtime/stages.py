"""Where did the time of one request go?

Each stage is a duration in seconds, measured by one process on its own clock; nothing here compares two clocks.
The stages are the lifetime events of DistServe (OSDI '24, section 6) as durations, plus the two ends of the hand-off.
"""

from msgspec import Struct


class PrefillStages(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Measured by the prefill worker."""

    queue_s: float  # Prefill received -> first chunk starts
    compute_s: float  # first chunk starts -> token 1 sampled
    chunks: int
    transfer_s: float = 0.0  # first piece sent -> last piece settled; it overlaps compute_s
    transfer_tail_s: float = 0.0  # token 1 sampled -> last piece settled: the part that compute did not hide
    transfer_bytes: int = 0
    pieces: int = 0


class DecodeStages(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Measured by the decode worker."""

    intake_s: float = 0.0  # Admit received -> every page and digest in
    verify_s: float = 0.0  # digest check of the pages received
    join_s: float = 0.0  # verified -> first decode step starts
    decode_s: float = 0.0  # first decode step starts -> last token
    steps: int = 0


class Ledger(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the coordinator knows of a request when it ends; the times without a worker's name are the coordinator's."""

    queue_s: float = 0.0  # Submit received -> dispatched to its workers
    first_token_s: float = 0.0  # Submit received -> token 1 at the coordinator
    handoff_gap_s: float = 0.0  # token 1 -> token 2 at the coordinator; 0 with fewer than two tokens
    total_s: float = 0.0  # Submit received -> end
    prefill: PrefillStages | None = None
    decode: DecodeStages | None = None
    prefill_worker: str = ""
    decode_worker: str = ""
