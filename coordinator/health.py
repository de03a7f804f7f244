"""Can this cell produce a token now, and would it take another request?

Pure. For whoever asks whether to send requests here or whether to restart the whole thing: a balancer, an orchestrator,
a person. A single lost worker is not an illness while another pair, or another aggregated worker, serves.
"""

from dataclasses import dataclass

from coordinator.admission import AdmissionLimits, overload
from coordinator.state import CellState, Phase, RequestRecord


@dataclass(frozen=True, slots=True)
class Health:
    ok: bool  # tokens can be expected
    reason: str  # why not `ok` or not `accepting`; empty if both
    accepting: bool  # a small request that is sent now would be taken


def health(
    cell: CellState,
    now: float,
    last_progress: float,
    limits: AdmissionLimits,
    *,
    loading: bool,
    stall_s: float,
) -> Health:
    """Judge the cell.

    Args:
        last_progress: when a worker last made a token or let go of a request.
        loading: no worker has joined yet, so nobody knows the model.
    """
    ill = "the server is still loading its model" if loading else _nobody_serves(cell, limits)
    ill = ill or _stalled(cell, now, last_progress, stall_s)
    if ill is not None:
        return Health(ok=False, reason=ill, accepting=False)
    closed = "the server is shutting down" if cell.draining else overload(cell, 1, limits)
    return Health(ok=True, reason=closed or "", accepting=closed is None)


def _nobody_serves(cell: CellState, limits: AdmissionLimits) -> str | None:
    """One worker that serves every prompt is enough: alone in an aggregated cell, otherwise a linked pair."""
    if limits.local.aggregated:
        return None if cell.of_role("decode") else "no worker serves"
    if any(decode in cell.workers for prefill in cell.of_role("prefill") for decode in prefill.links):
        return None
    return "no prefill worker is linked to a decode worker"


def _stalled(cell: CellState, now: float, last_progress: float, stall_s: float) -> str | None:
    waiting = [record for record in cell.requests.values() if _waits_for_workers(record)]
    if not waiting:
        return None
    # An idle cell makes no progress and is well: the silence counts from when somebody began to wait.
    began = min(record.submitted_at if record.dispatched_at is None else record.dispatched_at for record in waiting)
    silent_s = now - max(last_progress, began)
    if silent_s > stall_s:
        return f"{len(waiting)} requests wait, and no worker has made any progress for {silent_s:.0f} s"
    return None


def _waits_for_workers(record: RequestRecord) -> bool:
    """Queued, computed, or over for its client while a worker still holds pages that others may be waiting for."""
    held = record.prefill_worker is not None or record.decode_worker is not None
    return held or record.phase is Phase.QUEUED
