"""Which parts make up the time that a client waited for one request?

Pure. The parts lie one behind the other on the request's critical path. Each is a duration that one process measured on
its own clock; clocks are never compared, so what nobody measured, the ways between the processes, is the rest. Its
places are differences of two durations over the same span, each taken on one clock: what the coordinator waited for a
worker less what that worker accounts for. A place can be slightly negative: of the hand-off, when `Admit` was longer on
its way than `Prefill`. docs/lifecycle.md defines every part.
"""

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from launch.evaluation.results import Outcome, RequestResult
from runtime.stages import DecodeStages, Ledger, PrefillStages

CLIENT, COORDINATOR, HAND_OFF = "client <-> coordinator", "coordinator <-> {}", "hand-off"


class Part(Struct, frozen=True, kw_only=True):
    stage: str
    seconds: float
    where: str  # "client", "coordinator", a worker's id


class Breakdown(Struct, frozen=True, kw_only=True):
    """Of E2E: send -> last token at the client."""

    parts: tuple[Part, ...]  # in the order of time
    e2e_s: float
    residual_s: float  # E2E less the sum of the parts
    places: tuple[Part, ...] = ()  # of the residual: their sum is that; "residual" as `where`
    client_queue_s: float = 0.0  # wanted -> sent, at the client: before E2E


def breakdown(result: RequestResult) -> Breakdown | None:
    """None: the request did not complete, or its ledger does not tell of all workers on its path."""
    if result.outcome is not Outcome.COMPLETED or result.ledger is None or not result.token_s:
        return None
    found = of_ledger(result.ledger, len(result.token_s), result.token_s[-1] - result.sent_s)
    if found is None:
        return None
    return Breakdown(
        parts=found.parts,
        e2e_s=found.e2e_s,
        residual_s=found.residual_s,
        places=found.places,
        client_queue_s=max(result.sent_s - result.arrival_s, 0.0),
    )


def of_ledger(ledger: Ledger, tokens: int, e2e_s: float | None) -> Breakdown | None:
    """
    Args:
        tokens: of the answer.
        e2e_s: as the client saw it; None: as the coordinator did, request received -> last token passed to the socket.
    """
    prefill, decode = ledger.prefill, ledger.decode
    local = ledger.prefill_worker == ledger.decode_worker
    if prefill is None or ((local or tokens > 1) and decode is None):
        return None
    decode = decode or DecodeStages()
    # Of the coordinator's clock: dispatched and all orders out -> last token back.
    away_s = ledger.total_s - ledger.queue_s - ledger.dispatch_s
    lead_s = 0.0 if local else max(ledger.dispatch_s - ledger.admit_s, 0.0)  # Admit left before Prefill
    if tokens > 1 or local:
        before_s = _before_decode_s(prefill, decode, local=local)
        decode = _without_overrun(decode, tokens, away_s + lead_s - before_s)
    if local:
        work = (*_prefill(prefill, ledger.prefill_worker), *_decode(decode, ledger.decode_worker))
        gaps: tuple[tuple[str, float], ...] = ((COORDINATOR.format(ledger.decode_worker), away_s - _total(work)),)
    elif tokens == 1:
        work = (*_prefill(prefill, ledger.prefill_worker), _part("send token 1", prefill.send_s, ledger.prefill_worker))
        gaps = ((COORDINATOR.format(ledger.prefill_worker), away_s - _total(work)),)
    else:
        # The prefill worker hears of the end of its last piece; the decode worker may have gone on before.
        left_s = decode.intake_s - lead_s - prefill.queue_s - prefill.compute_s
        tail_s = min(prefill.transfer_tail_s, max(left_s, 0.0))
        received = _received(decode, ledger.decode_worker)
        computed = (*_prefill(prefill, ledger.prefill_worker), _part("transfer tail", tail_s, ledger.prefill_worker))
        work = (*computed, *received)
        gaps = (
            (COORDINATOR.format(ledger.decode_worker), away_s + lead_s - decode.intake_s - _total(received)),
            (HAND_OFF, decode.intake_s - lead_s - _total(computed)),
        )
    before = (
        _part("tokenise", ledger.tokenise_s, "coordinator"),
        _part("prepare", ledger.prepare_s, "coordinator"),
        _part("queue", ledger.queue_s, "coordinator"),
        _part("dispatch", ledger.dispatch_s, "coordinator"),
    )
    after = (
        _part("detokenise", ledger.detokenise_s, "coordinator"),
        _part("send", ledger.send_s, "coordinator"),
    )
    seen_s = _total(before) + away_s + _total(after)
    parts = (*before, *work, *after)
    if e2e_s is not None:
        gaps = ((CLIENT, e2e_s - seen_s), *gaps)
    total_s = seen_s if e2e_s is None else e2e_s
    return Breakdown(
        parts=parts,
        e2e_s=total_s,
        residual_s=total_s - _total(parts),
        places=tuple(_part(place, seconds, "residual") for place, seconds in gaps),
    )


def _prefill(stages: PrefillStages, worker: str) -> tuple[Part, ...]:
    """Chunks and the waits between them alternate; each is told as one sum."""
    chunks_s = min(sum(stages.chunk_s), stages.compute_s)
    return (
        _part("prefill queue", stages.queue_s, worker),
        _part("prefill", chunks_s, worker),
        _part("prefill wait", stages.compute_s - chunks_s, worker),
    )


def _received(stages: DecodeStages, worker: str) -> tuple[Part, ...]:
    return (
        _part("verify wait", stages.verify_wait_s, worker),
        _part("verify", max(stages.verify_s - stages.verify_wait_s, 0.0), worker),
        *_decode(stages, worker),
    )


def _decode(stages: DecodeStages, worker: str) -> tuple[Part, ...]:
    return (
        _part("join", stages.join_s, worker),
        _part("first decode step", stages.first_step_s, worker),
        _part("decode", max(stages.decode_s - stages.first_step_s, 0.0), worker),
        _part("send tokens", stages.send_s, worker),
    )


def _before_decode_s(prefill: PrefillStages, decode: DecodeStages, *, local: bool) -> float:
    """What the decode worker did, and waited for, before its first step."""
    computed_s = prefill.queue_s + prefill.compute_s
    return decode.join_s + (computed_s if local else decode.intake_s + decode.verify_s)


def _without_overrun(stages: DecodeStages, tokens: int, left_s: float) -> DecodeStages:
    """A stop string is found at the coordinator, while the decode worker goes on: for the steps behind the last token
    nobody waits, nor for what was sent after them. `left_s` is what the coordinator's clock leaves for the others, with
    the way of the last token in it.
    """
    own = stages.steps < tokens  # its last token is that of the answer
    send_s = stages.send_s if own else 0.0
    if tokens <= 1:
        return replace(stages, join_s=0.0, decode_s=0.0, first_step_s=0.0, send_s=send_s, steps=0)
    if own:
        return stages
    decode_s = max(min(stages.decode_s, left_s), 0.0)
    first_step_s = min(stages.first_step_s, decode_s)
    return replace(stages, decode_s=decode_s, first_step_s=first_step_s, send_s=send_s, steps=tokens - 1)


def _part(stage: str, seconds: float, where: str) -> Part:
    return Part(stage=stage, seconds=seconds, where=where)


def _total(parts: Sequence[Part]) -> float:
    return sum(part.seconds for part in parts)
