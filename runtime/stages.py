"""Where did the time of one request go?

Each stage is a duration in seconds, measured by one process on its own clock; nothing here compares two clocks.
The stages are the lifetime events of DistServe (OSDI '24, section 6) as durations, plus the two ends of the hand-off.
docs/lifecycle.md tells which of them lie one behind the other; `launch.evaluation.breakdown` puts them in that order.
"""

from typing import Annotated

from msgspec import Meta, Struct

_Seconds = Annotated[float, Meta(ge=0.0, le=1e9)]
_Count = Annotated[int, Meta(ge=0, lt=1 << 48)]
MAX_CHUNKS_TOLD = 16
"""Chunks of a prompt whose seconds are told one by one; the last of them is the sum of all that follow."""


def with_chunk(chunk_s: tuple[float, ...], seconds: float) -> tuple[float, ...]:
    """One chunk more; once there are as many as are told, the last one grows."""
    if len(chunk_s) < MAX_CHUNKS_TOLD:
        return (*chunk_s, seconds)
    return (*chunk_s[:-1], chunk_s[-1] + seconds)


class PrefillStages(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Measured by who computed the prompt: a prefill worker, or a decode worker, which transferred nothing."""

    queue_s: _Seconds  # Prefill or Serve received -> first chunk starts
    compute_s: _Seconds  # first chunk starts -> token 1 sampled
    chunks: _Count
    chunk_s: Annotated[
        tuple[_Seconds, ...], Meta(max_length=MAX_CHUNKS_TOLD)
    ] = ()  # of compute_s: on the engine thread
    send_s: _Seconds = 0.0  # token 1 sampled -> given to the socket
    transfer_first_s: _Seconds = 0.0  # first chunk starts -> first piece under way
    transfer_s: _Seconds = 0.0  # with at least one piece under way; it overlaps compute_s
    transfer_tail_s: _Seconds = 0.0  # token 1 sampled -> last piece settled: the part that compute did not hide
    transfer_bytes: _Count = 0
    pieces: _Count = 0


class DecodeStages(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Measured by the decode worker."""

    intake_s: _Seconds = 0.0  # Admit received -> every page and digest in; contains the prefill
    verify_s: _Seconds = 0.0  # every page in -> their digests checked
    verify_wait_s: _Seconds = 0.0  # of verify_s: until the engine thread was free, and the way back to the loop
    join_s: _Seconds = 0.0  # verified, or token 1 sampled here -> first decode step starts
    decode_s: _Seconds = 0.0  # first decode step starts -> last token
    first_step_s: _Seconds = 0.0  # of decode_s: the first step
    send_s: _Seconds = 0.0  # last token -> given to the socket
    steps: _Count = 0


class Ledger(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the coordinator knows of a request when it ends; the times without a worker's name are the coordinator's.

    Submitted: tokenised, found valid and taken in.
    """

    prepare_s: _Seconds = 0.0  # request received -> submitted, less tokenise_s
    tokenise_s: _Seconds = 0.0  # chat template and tokeniser
    queue_s: _Seconds = 0.0  # submitted -> dispatched to its workers
    admit_s: _Seconds = 0.0  # dispatched -> Admit given to the socket; 0 without a hand-off
    dispatch_s: _Seconds = 0.0  # dispatched -> the last order given to the socket
    first_token_s: _Seconds = 0.0  # submitted -> token 1 at the coordinator
    first_out_s: _Seconds = 0.0  # token 1 at the coordinator -> its text given to the socket
    handoff_gap_s: _Seconds = 0.0  # token 1 -> token 2 at the coordinator; 0 with fewer than two tokens
    total_s: _Seconds = 0.0  # submitted -> last token at the coordinator
    detokenise_s: _Seconds = 0.0  # last token at the coordinator -> its text handed to the front
    send_s: _Seconds = 0.0  # its text handed to the front -> given to the socket
    prefill: PrefillStages | None = None
    decode: DecodeStages | None = None
    prefill_worker: str = ""  # who computed the prompt; the decode worker itself where nothing was handed off
    decode_worker: str = ""
