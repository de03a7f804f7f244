"""Where did the time of one request go?

Each stage is a duration in seconds, measured by one process on its own clock; nothing here compares two clocks.
The stages are the lifetime events of DistServe (OSDI '24, section 6) as durations, plus the two ends of the hand-off.
"""

from typing import Annotated

from msgspec import Meta, Struct

_Seconds = Annotated[float, Meta(ge=0.0, le=1e9)]
_Count = Annotated[int, Meta(ge=0, lt=1 << 48)]


class PrefillStages(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Measured by who computed the prompt: a prefill worker, or a decode worker, which transferred nothing."""

    queue_s: _Seconds  # Prefill or Serve received -> first chunk starts
    compute_s: _Seconds  # first chunk starts -> token 1 sampled
    chunks: _Count
    transfer_s: _Seconds = 0.0  # with at least one piece under way; it overlaps compute_s
    transfer_tail_s: _Seconds = 0.0  # token 1 sampled -> last piece settled: the part that compute did not hide
    transfer_bytes: _Count = 0
    pieces: _Count = 0


class DecodeStages(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Measured by the decode worker."""

    intake_s: _Seconds = 0.0  # Admit received -> every page and digest in
    verify_s: _Seconds = 0.0  # digest check of the pages received
    join_s: _Seconds = 0.0  # verified, or token 1 sampled here -> first decode step starts
    decode_s: _Seconds = 0.0  # first decode step starts -> last token
    steps: _Count = 0


class Ledger(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the coordinator knows of a request when it ends; the times without a worker's name are the coordinator's."""

    queue_s: _Seconds = 0.0  # Submit received -> dispatched to its workers
    first_token_s: _Seconds = 0.0  # Submit received -> token 1 at the coordinator
    handoff_gap_s: _Seconds = 0.0  # token 1 -> token 2 at the coordinator; 0 with fewer than two tokens
    total_s: _Seconds = 0.0  # Submit received -> end
    prefill: PrefillStages | None = None
    decode: DecodeStages | None = None
    prefill_worker: str = ""  # who computed the prompt; the decode worker itself where nothing was handed off
    decode_worker: str = ""
