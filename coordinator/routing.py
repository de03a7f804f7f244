"""Which pair of workers serves the next request?

Pure. Prefill: the least predicted wait, from the tokens a worker still owes and the rate it was measured at. Decode:
the largest share of free pages among those that the prefill worker has a tested link to; all streams of a decode worker
share its step, so the emptiest is also the fastest. Ties go to the lower name, so that a test can predict them.
"""

from dataclasses import dataclass

from coordinator.admission import AdmissionLimits, hands_off, has_decode_room, has_prefill_room, pages_needed
from coordinator.state import CellState, RequestRecord, WorkerRecord


@dataclass(frozen=True, slots=True)
class Route:
    prefill: str
    decode: str | None  # None: one token is all, nothing is handed off
    pages: int


def choose(cell: CellState, record: RequestRecord, limits: AdmissionLimits) -> Route | None:
    """The pair for `record`, or None if it has to wait."""
    for prefill in sorted(cell.of_role("prefill"), key=lambda worker: _predicted_wait(cell, worker)):
        if not has_prefill_room(prefill, len(record.prompt), limits):
            continue
        if not hands_off(record.max_tokens):
            return Route(prefill.worker_id, None, 0)
        route = _with_decode(cell, record, prefill)
        if route is not None:
            return route
    return None


def _predicted_wait(cell: CellState, worker: WorkerRecord) -> tuple[float, str]:
    """Seconds until the worker gets to a new prompt; a worker without a measured rate is taken for an average one."""
    rates = [w.tokens_per_s for w in cell.of_role("prefill") if w.tokens_per_s > 0]
    average = sum(rates) / len(rates) if rates else 1.0
    return worker.backlog_tokens / (worker.tokens_per_s or average), worker.worker_id


def _with_decode(cell: CellState, record: RequestRecord, prefill: WorkerRecord) -> Route | None:
    linked = [worker for worker in cell.of_role("decode") if worker.worker_id in prefill.links]
    for worker in sorted(linked, key=lambda w: (-w.free_pages / max(w.pool.total_pages, 1), w.worker_id)):
        pages = pages_needed(len(record.prompt), record.max_tokens, worker.pool.page_tokens)
        if has_decode_room(worker, pages):
            return Route(prefill.worker_id, worker.worker_id, pages)
    return None
