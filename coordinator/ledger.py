"""What does the coordinator's clock know of one request?

Pure: durations from the times that the machine has noted, with what the workers said of themselves.
"""

from coordinator.state import RequestRecord
from runtime.stages import Ledger


def ledger(record: RequestRecord) -> Ledger:
    """Of a request that has ended."""
    started = record.submitted_at
    return Ledger(
        queue_s=(record.dispatched_at or record.finished_at) - started,
        first_token_s=(record.first_token_at or record.finished_at) - started,
        handoff_gap_s=record.handoff_gap_s,
        total_s=record.finished_at - started,
        prefill=record.prefill_stages,
        decode=record.decode_stages,
        prefill_worker=record.served_by[0],
        decode_worker=record.served_by[1],
    )
