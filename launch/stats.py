"""How is the latency of one request shown?

`--stats`: TTFT, TPOT and the parts of E2E in the order of time, each with the process that measured it, then what no
process measured. `kvrelay explain` shows the same parts (`launch.explain`). Durations of different processes are shown
side by side; where two are subtracted, they are of the same span (`launch.evaluation.breakdown`).
"""

from rich.console import Console
from rich.table import Table

from launch.client import Completion
from launch.evaluation.breakdown import Breakdown, Part, of_ledger
from runtime.stages import Ledger, PrefillStages
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
    tokens, ledger = len(completion.token_ids), completion.ledger
    e2e_s = sum(completion.gaps_s)
    rows = [
        ("TTFT", milliseconds(completion.ttft_s), "client", f"{completion.prompt_tokens} prompt tokens"),
        ("TPOT", milliseconds(completion.tpot_s), "client", f"{tokens} tokens, finish: {completion.finish_reason}"),
        ("E2E", milliseconds(e2e_s), "client", "send -> last token; made of:"),
    ]
    if ledger is None or ledger.prefill_worker != ledger.decode_worker:
        rows.insert(2, ("hand-off gap", milliseconds(completion.handoff_gap_s), "client", "token 1 -> token 2"))
    found = None if ledger is None or not tokens else of_ledger(ledger, tokens, e2e_s)
    if ledger is None or found is None:
        return rows
    told = details(ledger)
    rows += [
        (part.stage, milliseconds(part.seconds), part.where, told.get(part.stage, "")) for part in told_parts(found)
    ]
    rows.append(("residual", milliseconds(found.residual_s), "nobody", "between the processes"))
    if ledger.prefill is not None and ledger.prefill.transfer_bytes:
        moved = (milliseconds(ledger.prefill.transfer_s), ledger.prefill_worker, transfer_detail(ledger.prefill))
        rows.append(("(transfer)", *moved))
    return rows


def told_parts(found: Breakdown) -> list[Part]:
    """Those that took any time at all."""
    return [part for part in found.parts if part.seconds > 0]


def details(ledger: Ledger) -> dict[str, str]:
    """What is worth saying beside the seconds of a stage."""
    told = {
        "queue": "submitted -> sent to its workers",
        "verify": "digest of every page",
        "verify wait": "for the decode step under way",
        "join": "verified, or token 1 -> its first step",
        "transfer tail": "after token 1: not hidden by compute",
    }
    if ledger.prefill is not None:
        seconds = ", ".join(f"{one * 1e3:.0f}" for one in ledger.prefill.chunk_s)
        told["prefill"] = "1 chunk" if ledger.prefill.chunks == 1 else f"{ledger.prefill.chunks} chunks: {seconds} ms"
    if ledger.decode is not None:
        told["decode"] = f"{max(ledger.decode.steps - 1, 0)} steps"
    return told


def transfer_detail(stages: PrefillStages) -> str:
    rate = stages.transfer_bytes / stages.transfer_s / 1e9 if stages.transfer_s > 0 else 0.0
    return f"{stages.transfer_bytes / 1e6:.1f} MB in {stages.pieces} pieces, {rate:.2f} GB/s; beside the computation"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"
