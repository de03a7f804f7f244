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
    request_id, prompt, sampling = record.request_id, record.prompt, record.sampling
    if route.prefill is None:
        serve = Serve(request_id=request_id, prompt=prompt, sampling=sampling, pages=route.pages)
        return [Tell(route.computes, serve)]
    orders = []
    transfer_id = record.transfer_id = cell.new_transfer_id()
    if route.decode is not None:
        admit = Admit(
            request_id=request_id,
            prompt=prompt,
            sampling=sampling,
            transfer_id=transfer_id,
            peer=cell.workers[route.prefill].peer,
            pages=route.pages,
        )
        orders.append(Tell(route.decode, admit))
    peer = cell.workers[route.decode].peer if route.decode is not None else None
    prefill = Prefill(request_id=request_id, prompt=prompt, sampling=sampling, transfer_id=transfer_id, peer=peer)
    return [*orders, Tell(route.prefill, prefill)]
