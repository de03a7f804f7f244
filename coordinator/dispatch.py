"""What does a request spend when it starts, and who is told what?

Pure; called by `coordinator.machine`, which has chosen the route. Every order of a request leaves in the same step:
only the coordinator spends credits, so nobody has to be asked.
"""

from coordinator.events import Tell
from coordinator.routing import Route
from coordinator.state import CellState, RequestRecord
from transport.messages.worker import Admit, Prefill, Serve


def start(cell: CellState, record: RequestRecord, route: Route, now: float) -> list[Tell]:
    """Spend the pages of a route, note who holds the request, and give its orders."""
    record.dispatched_at = now
    record.local = route.prefill is None
    for worker_id in (route.decode, route.prefill):
        if worker_id is not None:
            cell.workers[worker_id].requests.add(record.request_id)
    record.prefill_worker, record.decode_worker = route.prefill, route.decode
    cell.workers[route.computes].backlog_tokens += len(record.prompt)
    record.served_by = (route.computes, route.decode or "")
    if route.decode is not None:
        cell.workers[route.decode].free_pages -= route.pages
        record.pages = route.pages
    return _orders(cell, record, route)


def _orders(cell: CellState, record: RequestRecord, route: Route) -> list[Tell]:
    what = {"request_id": record.request_id, "prompt": record.prompt, "sampling": record.sampling}
    if route.prefill is None:
        return [Tell(route.computes, Serve(pages=route.pages, **what))]  # type: ignore[arg-type]  # a dict
    prefill = cell.workers[route.prefill]
    decode = cell.workers[route.decode] if route.decode is not None else None
    what["transfer_id"] = record.transfer_id = cell.new_transfer_id()
    orders = [Tell(route.prefill, Prefill(peer=decode.peer if decode else None, **what))]  # type: ignore[arg-type]  # likewise
    if decode is not None:
        admit = Admit(peer=prefill.peer, pages=route.pages, **what)  # type: ignore[arg-type]  # likewise
        orders.insert(0, Tell(decode.worker_id, admit))
    return orders
