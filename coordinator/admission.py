"""May this request be accepted at all, and may it start now?

Pure. Only the coordinator spends a decode worker's pages, and it spends the worst case at once: a request that was
admitted never waits for a page again and is never preempted (ADR-0003). The price is over-reservation.
"""

from dataclasses import dataclass, field

from coordinator.local_prefill import LocalPrefill
from coordinator.state import CellState, WorkerRecord


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    max_queued_requests: int
    max_queued_tokens: int
    prefill_backlog_tokens: int
    """A prompt is sent to a busy prefill worker only while that worker owes fewer prompt tokens than this: pages on the
    decode worker are spent from that moment on, and a prompt that waits for its turn there spends them for nothing."""
    worker_absence_s: float = 30.0  # how long the queue waits for a role that has no worker
    local: LocalPrefill = field(default_factory=LocalPrefill)


def kv_tokens(prompt_tokens: int, max_tokens: int) -> int:
    """Tokens whose KV must be stored in the worst case: the last token generated is never fed back."""
    return prompt_tokens + max_tokens - 1


def pages_needed(prompt_tokens: int, max_tokens: int, page_tokens: int) -> int:
    """Pages on a decode worker in the worst case."""
    return -(-kv_tokens(prompt_tokens, max_tokens) // page_tokens)


def hands_off(max_tokens: int) -> bool:
    """Token 1 comes from where the prompt is computed; after a prefill worker, a request for one needs no other."""
    return max_tokens > 1


def overload(cell: CellState, prompt_tokens: int, limits: AdmissionLimits) -> str | None:
    """Why the queue cannot take this request, or None."""
    if len(cell.queue) >= limits.max_queued_requests:
        return f"{len(cell.queue)} requests wait already, which is the limit; try again later"
    queued_tokens = sum(len(cell.requests[request_id].prompt) for request_id in cell.queue)
    if cell.queue and queued_tokens + prompt_tokens > limits.max_queued_tokens:
        return (
            f"{queued_tokens} prompt tokens wait already, with a limit of {limits.max_queued_tokens}; try again later"
        )
    return None


def never_fits(cell: CellState, prompt_tokens: int, max_tokens: int, limits: AdmissionLimits) -> str | None:
    """Why no worker of this cell could ever serve the request, however idle; None while a role has no worker yet."""
    prefills, decodes = cell.of_role("prefill"), cell.of_role("decode")
    decodes_alone = limits.local.aggregated
    if prefills and prompt_tokens > (largest := max(map(usable_tokens, prefills))):
        decodes_alone = True  # no prefill worker could compute it
        if not limits.local.may_compute(prompt_tokens):
            return (
                f"the prompt has {prompt_tokens} tokens, but the KV pool of a prefill worker holds {largest}: "
                "shorten the prompt or start the server with a larger --prefill-kv-tokens"
            )
    if decodes and (hands_off(max_tokens) or decodes_alone):
        largest = largest_decode_tokens(cell)
        need = kv_tokens(prompt_tokens, max_tokens)
        if need > largest:
            return (
                f"prompt ({prompt_tokens}) and max_tokens ({max_tokens}) need {need} tokens of KV, but the pool of a "
                f"decode worker holds {largest}: lower one of them or start the server with a larger --decode-kv-tokens"
            )
    return None


def has_prefill_room(worker: WorkerRecord, prompt_tokens: int, limits: AdmissionLimits) -> bool:
    fits = prompt_tokens <= usable_tokens(worker)
    return fits and (worker.backlog_tokens == 0 or worker.backlog_tokens < limits.prefill_backlog_tokens)


def has_decode_room(worker: WorkerRecord, pages: int) -> bool:
    return pages <= worker.free_pages and len(worker.requests) < worker.max_batch


def largest_decode_tokens(cell: CellState) -> int:
    """KV tokens that the largest decode worker could hold for one request; 0 without a decode worker."""
    return max(map(usable_tokens, cell.of_role("decode")), default=0)


def usable_tokens(worker: WorkerRecord) -> int:
    """KV tokens that the pool of an idle worker could hold: quarantined pages are lost until it restarts."""
    return (worker.pool.total_pages - worker.quarantined_pages) * worker.pool.page_tokens
