"""What does the coordinator do when something happens?

Pure: `handle(event, now)` changes the state and returns actions; the shell (`coordinator.server`) executes them. The
only code that changes a `Phase` or decides that a request is over; credits are spent here, in `dispatch` and in
`links`. Called on the loop thread.

What it guarantees, whatever the order of events (tests/property/test_machine.py):
1. every `Submitted` leads to exactly one `Finish` or `Fail`, and to nothing for the client after it;
2. the tokens of a request are emitted with contiguous indices from 0;
3. free + spent + quarantined pages of a decode worker = its total;
4. a request is forgotten only when no living worker holds anything of it.
"""

from coordinator import admission, dispatch, links, routing
from coordinator.admission import AdmissionLimits
from coordinator.events import (
    Action,
    CancelAsked,
    DecodeLetGo,
    DrainAsked,
    Emit,
    Event,
    Fail,
    Finish,
    FirstTokenMade,
    PrefillLetGo,
    SelfTested,
    Stopped,
    StopStringFound,
    Submitted,
    Tell,
    Ticked,
    TokensMade,
    WorkerJoined,
    WorkerLost,
)
from coordinator.ledger import of_record
from coordinator.state import CellState, Phase, RequestRecord, WorkerRecord
from runtime.params import FinishReason
from runtime.tokens import SampledToken
from transport.messages.client import FailureCode
from transport.messages.common import Role
from transport.messages.worker import CancelRequest, PeerGone, TokenStep, ToWorker

FINISH_GRACE_S = 1.0  # how long the last word to a client waits for the numbers of the workers
_RATE_SMOOTHING = 0.3  # weight of the newest prompt in a prefill worker's measured rate


class Machine:
    """Owns `CellState`. One instance per coordinator."""

    def __init__(self, limits: AdmissionLimits) -> None:
        self.cell = CellState()
        self._limits = limits
        self._actions: list[Action] = []

    def handle(self, event: Event, now: float) -> list[Action]:
        """Apply one event; the actions are to be executed in order."""
        self._actions = []
        match event:
            case Submitted():
                self._submitted(event, now)
            case CancelAsked(request_id):
                self._client_ends(request_id, FinishReason.CANCELLED, now)
            case StopStringFound(request_id):
                self._client_ends(request_id, FinishReason.STOP, now)
            case WorkerJoined():
                self._worker_joined(event)
            case WorkerLost():
                self._worker_lost(event, now)
            case SelfTested(worker_id, report):
                links.reported(self.cell, worker_id, report)
            case FirstTokenMade():
                self._first_token(event, now)
            case TokensMade(worker_id, steps):
                for step in steps:
                    self._decode_token(worker_id, step, now)
            case PrefillLetGo():
                self._prefill_let_go(event, now)
            case DecodeLetGo():
                self._decode_let_go(event, now)
            case DrainAsked():
                self.cell.draining = True
            case Stopped():
                self._stop()
            case Ticked():
                self._expire(now)
                self._fail_without_workers(now)
                self.cell.failed_links.clear()
        self._actions += links.start_missing(self.cell)
        self._dispatch(now)
        return self._actions

    # --- the client's side -------------------------------------------------------------------------------------------

    def _submitted(self, event: Submitted, now: float) -> None:
        record = RequestRecord(event.request_id, event.prompt, event.sampling, now, now + event.timeout_s)
        self.cell.requests[event.request_id] = record
        never = admission.never_fits(self.cell, len(record.prompt), record.max_tokens, self._limits)
        busy = admission.overload(self.cell, len(record.prompt), self._limits)
        if self.cell.draining:
            self._fail(record, "draining", "the server is shutting down and accepts no new requests")
        elif never is not None:
            self._fail(record, "invalid_request", never)
        elif busy is not None:
            self._fail(record, "overloaded", busy)
        else:
            self.cell.queue.append(record.request_id)

    def _client_ends(self, request_id: int, reason: FinishReason, now: float) -> None:
        record = self.cell.requests.get(request_id)
        if record is None or record.phase is Phase.ENDED:
            return
        if record.phase is Phase.FINISHING:
            if reason is FinishReason.STOP:
                record.finish_reason = reason  # the last token completed a stop string
            return
        record.finish_reason, record.finished_at = reason, now
        self._stop_computing(record)
        if reason is FinishReason.STOP and record.last_token_at is not None:
            record.phase, record.finished_at = Phase.FINISHING, record.last_token_at
            record.early.clear()
            self._settle(record)  # the client has its last token; the last word waits for the workers' numbers
        else:
            self._finish(record)

    def _expire(self, now: float) -> None:
        for record in list(self.cell.requests.values()):
            if record.phase is Phase.FINISHING:
                if now - record.finished_at > FINISH_GRACE_S:
                    self._finish(record)
            elif record.phase is Phase.HANDING_OFF and record.early_end and now - record.early_end_at > FINISH_GRACE_S:
                self._fail(record, "internal", record.early_end)
            elif record.phase is not Phase.ENDED and now >= record.deadline:
                waited = now - record.submitted_at
                self._fail(record, "timeout", f"not done after {waited:.1f} s (it was {record.phase})")

    def _stop(self) -> None:
        """Nobody is left without a last word."""
        self.cell.draining = True
        for record in list(self.cell.requests.values()):
            if record.phase is Phase.FINISHING:
                self._finish(record)
            elif record.phase is not Phase.ENDED:
                self._fail(record, "draining", f"the server was stopped while the request was {record.phase}")

    def _fail_without_workers(self, now: float) -> None:
        """A lost worker is back in seconds; a role that stays empty will not serve the queue."""
        for role in self._limits.local.roles:
            if self.cell.of_role(role):
                continue
            absent_s = now - self.cell.absent_since.setdefault(role, now)
            if absent_s > self._limits.worker_absence_s:
                message = f"there has been no {role} worker for {absent_s:.0f} s; see the server's log"
                for record in [self.cell.requests[request_id] for request_id in self.cell.queue]:
                    if role == "decode" or not self._limits.local.may_compute(len(record.prompt)):
                        self._fail(record, "worker_lost", message)

    # --- the workers' side -------------------------------------------------------------------------------------------

    def _worker_joined(self, event: WorkerJoined) -> None:
        worker_id = event.peer.worker_id
        if worker_id in self.cell.workers:
            raise AssertionError(f"worker {worker_id} joined twice without being lost")
        total = event.pool.total_pages
        joined = WorkerRecord(worker_id, event.role, event.peer, event.pool, event.max_batch, free_pages=total)
        self.cell.workers[worker_id] = joined
        self.cell.absent_since.pop(event.role, None)

    def _worker_lost(self, event: WorkerLost, now: float) -> None:
        lost = self.cell.workers.pop(event.worker_id, None)
        if lost is None:
            return
        links.forget(self.cell, event.worker_id)
        for worker in self.cell.workers.values():
            if worker.role != lost.role:
                self._tell(worker, PeerGone(worker_id=event.worker_id, epoch=lost.peer.epoch))
        for request_id in sorted(lost.requests):
            record = self.cell.requests[request_id]
            if lost.role == "prefill":
                record.prefill_worker = None
            else:
                record.decode_worker = None
            if _needs(record, lost.role):
                self._fail(record, "worker_lost", _lost(record, lost, event.reason))
            self._settle(record)
        for record in list(self.cell.requests.values()):
            if record.phase is Phase.HANDING_OFF and record.served_by[0] == event.worker_id:
                record.prefill_lost = _lost(record, lost, event.reason)
                if record.early_end is not None:
                    self._cannot_go_on(record, record.early_end, now)

    def _first_token(self, event: FirstTokenMade, now: float) -> None:
        record = self._held_by(event.request_id, event.worker_id)
        if record is None:
            return
        self._prompt_computed(record, event.worker_id, now)
        if not record.phase.is_open:
            return
        record.phase = Phase.HANDING_OFF
        self._emit(record, event.token, event.finish, now)
        while record.phase.is_open and record.next_index in record.early:
            self._next_token(record, record.early.pop(record.next_index), now)
        if record.phase.is_open and record.early_end is not None:
            self._cannot_go_on(record, record.early_end, now)

    def _prompt_computed(self, record: RequestRecord, worker_id: str, now: float) -> None:
        self.cell.workers[worker_id].backlog_tokens -= len(record.prompt)
        record.first_token_at = now

    def _decode_token(self, worker_id: str, step: TokenStep, now: float) -> None:
        record = self._held_by(step.request_id, worker_id)
        if record is None:
            return
        if step.index == 0:
            if not record.local:
                raise AssertionError(f"request {step.request_id}: token 1 from a worker that does not compute it")
            self._prompt_computed(record, worker_id, now)
        if not record.phase.is_open:
            return  # decode had not heard of the end yet
        if step.index == 0:
            record.phase = Phase.DECODING
        if record.first_token_at is None:
            record.early[step.index] = step  # it overtook token 1, which comes over another connection
        else:
            self._next_token(record, step, now)

    def _next_token(self, record: RequestRecord, step: TokenStep, now: float) -> None:
        if step.index != record.next_index:
            raise AssertionError(f"request {step.request_id}: token {step.index}, but {record.next_index} is due")
        if record.phase is Phase.HANDING_OFF:
            record.handoff_gap_s = now - (record.first_token_at or now)
            record.phase = Phase.DECODING
        self._emit(record, step.token, step.finish, now)

    def _prefill_let_go(self, event: PrefillLetGo, now: float) -> None:
        record = self._held_by(event.request_id, event.worker_id)
        if record is None:
            return
        worker = self.cell.workers[event.worker_id]
        worker.requests.discard(event.request_id)
        worker.quarantined_pages += event.quarantined_pages
        record.prefill_worker = None
        record.prefill_stages = event.stages
        if record.first_token_at is None:
            worker.backlog_tokens -= len(record.prompt)
        if event.stages is not None and event.stages.compute_s > 0:
            rate = len(record.prompt) / event.stages.compute_s
            worker.tokens_per_s += (rate - worker.tokens_per_s) * (_RATE_SMOOTHING if worker.tokens_per_s else 1.0)
        error = event.error
        if record.phase is Phase.PREFILLING:
            error = error or "it let go of the prompt without a token"
        if (error is not None or record.early_end is not None) and _needs(record, "prefill"):
            self._cannot_go_on(record, f"worker {event.worker_id} could not go on: {error}", now)
        self._settle(record)

    def _decode_let_go(self, event: DecodeLetGo, now: float) -> None:
        record = self._held_by(event.request_id, event.worker_id)
        if record is None:
            return
        worker = self.cell.workers[event.worker_id]
        worker.requests.discard(event.request_id)
        worker.quarantined_pages += event.quarantined_pages
        worker.free_pages += record.pages - event.quarantined_pages
        record.decode_worker = None
        record.decode_stages = event.stages
        if record.local:
            record.prefill_stages = event.prefill
            if record.first_token_at is None:
                worker.backlog_tokens -= len(record.prompt)
        why = event.error or "it let go of the request before the last token"
        error = f"worker {event.worker_id} could not go on: {why}"
        if record.phase is Phase.PREFILLING and not record.local:
            record.early_end = error  # unless token 1, which is still on its way, ends the answer or completes it
        elif record.phase.is_open:
            self._cannot_go_on(record, error, now)
        self._settle(record)

    def _cannot_go_on(self, record: RequestRecord, why: str, now: float) -> None:
        """A hand-off may have failed because a side died, and UCX is faster than the news of it: wait a little for the
        loss, which is what the client should hear of. Prefill may have let go before: the wire had its last pages."""
        if record.phase is not Phase.HANDING_OFF:
            self._fail(record, "internal", record.early_end or why)
        elif record.prefill_lost is not None:
            self._fail(record, "worker_lost", record.prefill_lost)
        else:
            record.early_end, record.early_end_at = record.early_end or why, now

    # --- starting ----------------------------------------------------------------------------------------------------

    def _dispatch(self, now: float) -> None:
        """First come, first served: a request that does not fit holds up those behind it, so none starves."""
        while self.cell.queue:
            record = self.cell.requests[self.cell.queue[0]]
            route = routing.choose(self.cell, record, self._limits)
            if route is not None:
                self.cell.queue.popleft()
                self._start(record, route, now)
                continue
            never = admission.never_fits(self.cell, len(record.prompt), record.max_tokens, self._limits)
            if never is None:
                return
            self._fail(record, "overloaded", f"the cell has shrunk since this request was accepted: {never}")

    def _start(self, record: RequestRecord, route: routing.Route, now: float) -> None:
        record.phase = Phase.PREFILLING
        self._actions += dispatch.start(self.cell, record, route, now)

    # --- ending ------------------------------------------------------------------------------------------------------

    def _emit(self, record: RequestRecord, token: SampledToken, finish: FinishReason | None, now: float) -> None:
        self._actions.append(Emit(record.request_id, record.next_index, (token,), finish))
        record.next_index += 1
        record.last_token_at = now
        if finish is not None:
            record.phase = Phase.FINISHING
            record.finish_reason, record.finished_at = finish, now

    def _settle(self, record: RequestRecord) -> None:
        """A worker has let go: say the last word if it was waiting for that, and forget what is over everywhere."""
        if record.prefill_worker is not None or record.decode_worker is not None:
            return
        if record.phase is Phase.FINISHING:
            self._finish(record)
        elif record.phase is Phase.ENDED:
            self.cell.requests.pop(record.request_id, None)

    def _finish(self, record: RequestRecord) -> None:
        if record.finish_reason is None:
            raise AssertionError(f"request {record.request_id} finishes without a reason")
        self._actions.append(Finish(record.request_id, record.finish_reason, of_record(record)))
        self._end(record)

    def _fail(self, record: RequestRecord, code: FailureCode, message: str) -> None:
        self._stop_computing(record)
        self._actions.append(Fail(record.request_id, code, message))
        self._end(record)

    def _end(self, record: RequestRecord) -> None:
        if record.phase is Phase.QUEUED and record.request_id in self.cell.queue:
            self.cell.queue.remove(record.request_id)
        record.phase = Phase.ENDED
        record.early.clear()
        self._settle(record)

    def _stop_computing(self, record: RequestRecord) -> None:
        """Both sides stop at their next step; a transfer under way goes on to its end (ADR-0004)."""
        for worker_id in (record.prefill_worker, record.decode_worker):
            if worker_id is not None:
                self._tell(self.cell.workers[worker_id], CancelRequest(request_id=record.request_id))

    # --- small change ------------------------------------------------------------------------------------------------

    def _held_by(self, request_id: int, worker_id: str) -> RequestRecord | None:
        """The request, if this worker really holds it; late words of a lost worker name requests it no longer holds."""
        worker = self.cell.workers.get(worker_id)
        return self.cell.requests.get(request_id) if worker is not None and request_id in worker.requests else None

    def _tell(self, worker: WorkerRecord, message: ToWorker) -> None:
        self._actions.append(Tell(worker.worker_id, message))


def _lost(record: RequestRecord, lost: WorkerRecord, reason: str) -> str:
    what = f"the {lost.role} worker {lost.worker_id} was lost while the request was {record.phase}"
    return f"{what} ({reason}); send it again"


def _needs(record: RequestRecord, role: Role) -> bool:
    """Whether the request cannot go on without its worker of this role.

    One that decodes has all its pages: the prefill worker owes it nothing but numbers.
    """
    return record.phase.is_open and (role == "decode" or record.phase is not Phase.DECODING)
