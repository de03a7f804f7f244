"""How is the latency of one request shown?

`--stats`: TTFT, TPOT and the stages of the ledger, each with the process that measured it. Durations of different
processes are shown side by side and never subtracted from one another.
"""

from rich.console import Console
from rich.table import Table

from launch.client import Completion
from transport.messages.client import CellStatus


def print_stats(console: Console, completion: Completion) -> None:
    table = Table(show_header=True, header_style="bold", box=None, padding=(0, 2, 0, 0))
    for title in ("stage", "time", "measured by", "detail"):
        table.add_column(title, justify="right" if title == "time" else "left")
    for row in stage_rows(completion):
        table.add_row(*row)
    console.print(table)


def print_status(console: Console, status: CellStatus) -> None:
    table = Table(show_header=True, header_style="bold", box=None, padding=(0, 2, 0, 0))
    for title in ("worker", "pid", "pages", "free", "reserved", "quarantined", "running", "waiting"):
        table.add_column(title, justify="left" if title == "worker" else "right")
    for worker in status.workers:
        numbers = (
            worker.pid,
            worker.total_pages,
            worker.free_pages,
            worker.reserved_pages,
            worker.quarantined_pages,
            worker.running,
            worker.waiting,
        )
        table.add_row(worker.worker_id, *map(str, numbers))
    console.print(table)
    console.print(f"{status.in_flight} requests in flight, {status.queued} of them queued", highlight=False)


def stage_rows(completion: Completion) -> list[tuple[str, str, str, str]]:
    """(stage, time, who measured it, detail) of a finished request."""
    tokens = len(completion.token_ids)
    rows = [
        ("TTFT", _ms(completion.ttft_s), "client", f"{completion.prompt_tokens} prompt tokens"),
        ("TPOT", _ms(completion.tpot_s), "client", f"{tokens} tokens, finish: {completion.finish_reason}"),
        ("E2E", _ms(completion.total_s), "client", ""),
    ]
    ledger = completion.ledger
    handed_off = ledger is None or ledger.prefill_worker != ledger.decode_worker
    if handed_off:
        rows.insert(2, ("hand-off gap", _ms(completion.handoff_gap_s), "client", "token 1 -> token 2"))
    if ledger is None:
        return rows
    rows.append(("queue", _ms(ledger.queue_s), "coordinator", "submitted -> sent to its workers"))
    prefill, decode = ledger.prefill, ledger.decode
    if prefill is not None:
        worker = ledger.prefill_worker
        rows.append(("prefill queue", _ms(prefill.queue_s), worker, ""))
        rows.append(("prefill", _ms(prefill.compute_s), worker, f"{prefill.chunks} chunks"))
        if prefill.transfer_bytes:
            rate = prefill.transfer_bytes / prefill.transfer_s / 1e9 if prefill.transfer_s > 0 else 0.0
            moved = f"{prefill.transfer_bytes / 1e6:.1f} MB in {prefill.pieces} pieces, {rate:.2f} GB/s"
            rows.append(("transfer", _ms(prefill.transfer_s), worker, moved))
            rows.append(("transfer tail", _ms(prefill.transfer_tail_s), worker, "after token 1: not hidden by compute"))
    if decode is not None:
        worker = ledger.decode_worker
        if handed_off:
            rows.append(("intake", _ms(decode.intake_s), worker, "admitted -> all pages in"))
            rows.append(("verify", _ms(decode.verify_s), worker, "digest of every page"))
        rows.append(("join", _ms(decode.join_s), worker, "verified, or token 1 -> its first step"))
        rows.append(("decode", _ms(decode.decode_s), worker, f"{decode.steps} steps"))
    return rows


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"
