"""Which pair of workers serves the next request, or which decode worker alone?

Pure. Prefill: the least predicted wait, from the tokens a worker still owes and the rate it was measured at. Decode:
the largest share of free pages among those that the prefill worker has a tested link to; all streams of a decode worker
share its step, so the emptiest is also the fastest. Alone, where `LocalPrefill` allows it: the decode worker that owes
the fewest prompt tokens, and among those that owe about as few the emptiest. Ties go to the lower name, so that a test
can predict them.
"""

from dataclasses import dataclass

from coordinator.admission import AdmissionLimits, hands_off, has_decode_room, has_prefill_room, pages_needed
from coordinator.local_prefill import LocalPrefill
from coordinator.state import CellState, RequestRecord, WorkerRecord

_ABOUT_TOKENS = 256  # prompts that a worker computes in a fraction of a second make no difference to who comes next


@dataclass(frozen=True, slots=True)
class Route:
    prefill: str | None  # None: the decode worker computes the prompt itself
    decode: str | None  # None: one token is all, nothing is handed off
    pages: int

    @property
    def computes(self) -> str:
        """Who computes the prompt."""
        worker_id = self.prefill or self.decode
        if worker_id is None:
            raise AssertionError("a route without a worker")
        return worker_id


def choose(cell: CellState, record: RequestRecord, limits: AdmissionLimits) -> Route | None:
    """The workers for `record`, or None if it has to wait."""
    if limits.local.may_compute(len(record.prompt)):
        route = _alone(cell, record, limits.local)
        if route is not None or limits.local.aggregated:
            return route
    for prefill in sorted(cell.of_role("prefill"), key=lambda worker: _predicted_wait(cell, worker)):
        if not has_prefill_room(prefill, len(record.prompt), limits):
            continue
        if not hands_off(record.max_tokens):
            return Route(prefill.worker_id, None, 0)
        route = _with_decode(cell, record, prefill)
        if route is not None:
            return route
    return None


def _alone(cell: CellState, record: RequestRecord, local: LocalPrefill) -> Route | None:
    for worker in sorted(cell.of_role("decode"), key=_load_alone):
        pages = pages_needed(len(record.prompt), record.max_tokens, worker.pool.page_tokens)
        if local.has_room(worker) and has_decode_room(worker, pages):
            return Route(None, worker.worker_id, pages)
    return None


def _load_alone(worker: WorkerRecord) -> tuple[int, float, str]:
    """A new prompt waits for those before it; then it shares its steps with everything that runs."""
    return worker.backlog_tokens // _ABOUT_TOKENS, -_free_share(worker), worker.worker_id


def _predicted_wait(cell: CellState, worker: WorkerRecord) -> tuple[float, str]:
    """Seconds until the worker gets to a new prompt; a worker without a measured rate is taken for an average one."""
    rates = [w.tokens_per_s for w in cell.of_role("prefill") if w.tokens_per_s > 0]
    average = sum(rates) / len(rates) if rates else 1.0
    return worker.backlog_tokens / (worker.tokens_per_s or average), worker.worker_id


def _with_decode(cell: CellState, record: RequestRecord, prefill: WorkerRecord) -> Route | None:
    linked = [worker for worker in cell.of_role("decode") if worker.worker_id in prefill.links]
    for worker in sorted(linked, key=lambda w: (-_free_share(w), w.worker_id)):
        pages = pages_needed(len(record.prompt), record.max_tokens, worker.pool.page_tokens)
        if has_decode_room(worker, pages):
            return Route(prefill.worker_id, worker.worker_id, pages)
    return None


def _free_share(worker: WorkerRecord) -> float:
    return worker.free_pages / max(worker.pool.total_pages, 1)
