"""How does what a cell has recorded become a trace that ui.perfetto.dev and chrome://tracing show?

Pure: parts of a timeline in, a document in the Trace Event Format out. Every process of the cell is a process of the
trace: steps, the chunks in them, transfers and arrivals as slices, pools and queues as counters, each request with its
phases as an asynchronous slice of the coordinator, and an arrow from prompt over transfer to the first decode step.

Format: "Trace Event Format" (Google, docs/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU); times are microseconds there.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from msgspec import Struct

from launch.trace_lanes import Placed, Slice, pack
from runtime.flight import Arrival, Chunk, Gauge, InPhase, LastToken, Recorded, Step, Transfer, length_s
from transport.messages.client import TimelinePart

_LINES_APART = 1000  # thread ids of one kind of line: steps 0 .., chunks 1000 .., transfers 2000 ..
_KINDS = ("steps", "chunks", "transfers", "arrivals")
_REQUESTS = "request"
_HAND_OFF = "hand-off"


class TraceEvent(Struct, frozen=True, omit_defaults=True):
    """One event; `ts` and `dur` in microseconds, `tid` is a line of the process `pid`."""

    ph: Literal["M", "X", "C", "b", "e", "s", "t", "f", "i"]
    name: str
    pid: int
    tid: int
    ts: float
    dur: float | None = None
    cat: str | None = None
    id: str | None = None
    bp: Literal["e"] | None = None
    s: Literal["t"] | None = None
    args: dict[str, Any] = {}


class TracedProcess(Struct, frozen=True):
    """What a reader must know of one process before comparing its times with those of another."""

    name: str
    role: str
    pid: int
    uncertainty_s: float  # its clock was placed on the coordinator's give or take so much
    reaches_s: float | None  # how far back it was recorded, if not as far as was asked
    events: int


class TraceNotes(Struct, frozen=True):
    clock: str
    processes: tuple[TracedProcess, ...]
    missing: tuple[str, ...]  # workers that did not answer
    arrows: int
    arrows_left_out: int  # one end was not recorded, or the clocks are not known well enough to draw it


class TraceDocument(Struct, frozen=True, rename={"events": "traceEvents", "unit": "displayTimeUnit"}):
    events: tuple[TraceEvent, ...]
    unit: Literal["ms", "ns"]
    otherData: TraceNotes  # noqa: N815 - the name that the format has for it


@dataclass(frozen=True, slots=True)
class _Process:
    """One process of the cell with all its parts; `pid` is its number in the trace."""

    pid: int
    head: TimelinePart
    events: Sequence[Recorded]

    def end_s(self, recorded: Recorded) -> float:
        """On the coordinator's clock, 0 being when it was asked."""
        return self.head.delay_s - recorded.ago_s


@dataclass(frozen=True, slots=True)
class _Line:
    pid: int
    tid: int
    slice: Slice


def trace_document(parts: Iterable[TimelinePart], missing: Sequence[str] = ()) -> TraceDocument:
    """The trace of everything in `parts`, which come in any order between processes; time 0 is the first begin."""
    processes = _processes(parts)
    zero_s = min(
        (process.end_s(one) - length_s(one.event) for process in processes for one in process.events), default=0.0
    )
    heads: list[TraceEvent] = []
    events: list[TraceEvent] = []
    lines: dict[str, list[_Line]] = {kind: [] for kind in _KINDS}
    for process in processes:
        drawn = _slices(process, zero_s)
        heads += _names(process, drawn)
        for kind, placed in drawn.items():
            for one in placed:
                line = _Line(process.pid, _tid(kind, one.lane), one.slice)
                lines[kind].append(line)
                events.append(_complete(line, kind))
        events += _counters(process, zero_s)
        events += _requests(process, zero_s)
        events += _last_tokens(process, zero_s)
    arrows, left_out = _arrows(lines)
    for arrow in arrows:
        events += arrow
    events.sort(key=lambda event: event.ts)  # stable: slices stay before the arrows that end in them
    return TraceDocument(
        events=(*heads, *events),
        unit="ms",
        otherData=TraceNotes(
            clock="the coordinator's; each process placed on it by half a round trip, give or take its uncertainty_s",
            processes=tuple(_note(process) for process in processes),
            missing=tuple(missing),
            arrows=len(arrows),
            arrows_left_out=left_out,
        ),
    )


def _processes(parts: Iterable[TimelinePart]) -> list[_Process]:
    heads: dict[str, TimelinePart] = {}
    events: dict[str, list[Recorded]] = {}
    for part in parts:
        heads.setdefault(part.process, part)
        events.setdefault(part.process, []).extend(part.events)
    rank = {"coordinator": 0, "prefill": 1, "decode": 2}
    names = sorted(heads, key=lambda name: (rank[heads[name].role], name))
    return [_Process(number, heads[name], events[name]) for number, name in enumerate(names, start=1)]


def _note(process: _Process) -> TracedProcess:
    head = process.head
    return TracedProcess(head.process, head.role, head.pid, head.uncertainty_s, head.reaches_s, len(process.events))


def _ns(seconds: float, zero_s: float) -> int:
    return max(round((seconds - zero_s) * 1e9), 0)


def _us(ns: int) -> float:
    return ns / 1000


def _tid(kind: str, lane: int) -> int:
    return 1 + _KINDS.index(kind) * _LINES_APART + lane


# --- slices ----------------------------------------------------------------------------------------------------------


def _slices(process: _Process, zero_s: float) -> dict[str, list[Placed]]:
    """The slices of a process by kind, each on its line."""
    groups: dict[str, list[list[Slice]]] = {kind: [] for kind in _KINDS}
    for recorded in process.events:
        end_s = process.end_s(recorded)
        begin, end = _ns(end_s - length_s(recorded.event), zero_s), _ns(end_s, zero_s)
        match recorded.event:
            case Step() as step:
                args = {"decoding": step.decoding, "prompt tokens": step.prompt_tokens}
                groups["steps"].append([Slice(begin, end, _step_name(step), args, None, step.joined)])
            case Chunk() as chunk:
                args = {"request": chunk.request_id, "first token": chunk.first, "tokens": chunk.tokens}
                groups["chunks"].append([Slice(begin, end, f"request {chunk.request_id}", args, chunk.request_id)])
            case Transfer() as transfer:
                groups["transfers"].append([_transfer(transfer, begin, end)])
            case Arrival() as arrival:
                groups["arrivals"].append(list(_stages(arrival, end_s, zero_s)))
    return {kind: pack(of_kind) for kind, of_kind in groups.items()}


def _step_name(step: Step) -> str:
    if not step.decoding:
        return f"prefill {step.prompt_tokens}"
    return f"decode {step.decoding}" + (f" + prefill {step.prompt_tokens}" if step.prompt_tokens else "")


def _transfer(transfer: Transfer, begin: int, end: int) -> Slice:
    args = {
        "request": transfer.request_id,
        "transfer": transfer.transfer_id,
        "bytes": transfer.nbytes,
        "pieces": transfer.pieces,
        "moving ms": transfer.moving_s * 1e3,
        "ok": transfer.ok,
    }
    return Slice(begin, end, f"request {transfer.request_id}", args, transfer.request_id)


def _stages(arrival: Arrival, end_s: float, zero_s: float) -> Iterator[Slice]:
    args = {"request": arrival.request_id, "pages": arrival.pages, "joined": arrival.joined}
    at_s = end_s - length_s(arrival)
    for stage, stage_s in (("intake", arrival.intake_s), ("verify", arrival.verify_s), ("join", arrival.join_s)):
        if stage_s > 0:
            name = f"{stage} {arrival.request_id}"
            yield Slice(_ns(at_s, zero_s), _ns(at_s + stage_s, zero_s), name, args, arrival.request_id)
        at_s += stage_s


def _complete(line: _Line, kind: str) -> TraceEvent:
    one = line.slice
    return TraceEvent(
        ph="X",
        name=one.name,
        pid=line.pid,
        tid=line.tid,
        ts=_us(one.begin),
        dur=_us(one.end - one.begin),
        cat=kind,
        args=one.args,
    )


def _last_tokens(process: _Process, zero_s: float) -> Iterator[TraceEvent]:
    for recorded in process.events:
        if isinstance(recorded.event, LastToken):
            left = recorded.event
            args = {"request": left.request_id, "tokens": left.tokens}
            ts = _us(_ns(process.end_s(recorded), zero_s))
            name = f"request {left.request_id} leaves"
            yield TraceEvent("i", name, process.pid, _tid("steps", 0), ts, cat="steps", s="t", args=args)


# --- requests --------------------------------------------------------------------------------------------------------


def _requests(process: _Process, zero_s: float) -> Iterator[TraceEvent]:
    """Each request as one asynchronous slice that holds its phases; ends stand before the begins that follow them."""
    phases: dict[int, list[tuple[int, int, InPhase]]] = {}
    for recorded in process.events:
        if isinstance(recorded.event, InPhase):
            end_s = process.end_s(recorded)
            times = (_ns(end_s - recorded.event.duration_s, zero_s), _ns(end_s, zero_s))
            phases.setdefault(recorded.event.request_id, []).append((*times, recorded.event))
    for request_id, of_request in phases.items():
        of_request.sort(key=lambda phase: phase[:2])
        name, id_ = f"request {request_id}", f"0x{request_id:x}"
        last = max(end for _, end, _ in of_request)
        still = any(phase.still for *_, phase in of_request)
        args = {"request": request_id, "ended": not still}
        at = of_request[0][0]
        yield TraceEvent("b", name, process.pid, 0, _us(at), cat=_REQUESTS, id=id_, args=args)
        for begin, end, phase in of_request:
            begin = max(begin, at)  # noqa: PLW2901 - after rounding
            at = max(end, begin)
            yield TraceEvent("b", phase.phase, process.pid, 0, _us(begin), cat=_REQUESTS, id=id_)
            yield TraceEvent("e", phase.phase, process.pid, 0, _us(at), cat=_REQUESTS, id=id_)
        yield TraceEvent("e", name, process.pid, 0, _us(max(at, last)), cat=_REQUESTS, id=id_)


# --- counters --------------------------------------------------------------------------------------------------------


def _counters(process: _Process, zero_s: float) -> Iterator[TraceEvent]:
    """One counter per gauge, from the begin of what its process recorded; its first event says what it was before."""
    begin = min((process.end_s(one) - length_s(one.event) for one in process.events), default=0.0)
    seen: set[str] = set()
    for recorded in process.events:
        if isinstance(recorded.event, Gauge):
            gauge = recorded.event
            if gauge.name not in seen:
                seen.add(gauge.name)
                yield _count(process, gauge.name, _ns(begin, zero_s), gauge.was)
            yield _count(process, gauge.name, _ns(process.end_s(recorded), zero_s), gauge.value)


def _count(process: _Process, name: str, ns: int, value: int) -> TraceEvent:
    return TraceEvent("C", name, process.pid, 0, _us(ns), args={"value": value})


# --- arrows ----------------------------------------------------------------------------------------------------------


def _arrows(lines: dict[str, list[_Line]]) -> tuple[list[list[TraceEvent]], int]:
    """An arrow for every request that began to decode, and how many could not be drawn."""
    chunks, transfers = _by_request(lines["chunks"]), _by_request(lines["transfers"])
    arrows: list[list[TraceEvent]] = []
    left_out = 0
    first_steps = {request_id: step for step in lines["steps"] for request_id in step.slice.joined}
    for request_id, step in first_steps.items():
        arrow = _arrow(request_id, chunks.get(request_id, []), transfers.get(request_id, []), step)
        if arrow is None:
            left_out += 1
        else:
            arrows.append(arrow)
    return arrows, left_out


def _by_request(lines: Iterable[_Line]) -> dict[int, list[_Line]]:
    found: dict[int, list[_Line]] = {}
    for line in lines:
        if line.slice.request_id is not None:
            found.setdefault(line.slice.request_id, []).append(line)
    return found


def _arrow(request_id: int, chunks: list[_Line], transfers: list[_Line], step: _Line) -> list[TraceEvent] | None:
    """From the chunk whose pages began the last transfer, over that transfer, to the step; or from the last chunk.

    A transfer comes before the step, whatever two clocks say that are known to a fraction of a millisecond: where they
    disagree the arrow ends inside the step.
    """
    here = [line for line in chunks if line.pid == step.pid and line.slice.end <= step.slice.begin]
    transfer = max(
        (line for line in transfers if line.slice.begin < step.slice.end),
        key=lambda line: line.slice.begin,
        default=None,
    )
    if transfer is not None and not here:
        sent = transfer
        here = [line for line in chunks if line.pid == sent.pid and line.slice.end <= sent.slice.begin]
    chunk = max(here, key=lambda line: line.slice.end, default=None)
    if chunk is None or (transfer is None and chunk.pid != step.pid):
        return None
    over = [transfer] if transfer is not None and transfer.pid == chunk.pid != step.pid else []
    ends = [chunk, *over, step]
    if any(line.slice.end == line.slice.begin for line in ends):
        return None  # there is no inside in which an arrow could be anchored
    start = max(chunk.slice.end - 1, chunk.slice.begin)
    kinds: list[tuple[Literal["s", "t", "f"], _Line, int]] = [("s", chunk, start)]
    kinds += [("t", line, line.slice.begin) for line in over]
    kinds.append(("f", step, max([step.slice.begin, *(line.slice.begin for line in over)])))
    if [at for *_, at in kinds] != sorted(at for *_, at in kinds):
        return None
    return [
        TraceEvent(
            kind,
            f"hand-off {request_id}" if over else f"local {request_id}",
            line.pid,
            line.tid,
            _us(at),
            cat=_HAND_OFF,
            id=f"0x{request_id:x}",
            bp="e",
            args={"request": request_id},
        )
        for kind, line, at in kinds
    ]


# --- names -----------------------------------------------------------------------------------------------------------


def _names(process: _Process, drawn: dict[str, list[Placed]]) -> Iterator[TraceEvent]:
    head = process.head
    label = f"pid {head.pid}, ±{head.uncertainty_s * 1e3:.3f} ms"
    yield _meta(process, "process_name", 0, {"name": head.process})
    yield _meta(process, "process_labels", 0, {"labels": label})
    yield _meta(process, "process_sort_index", 0, {"sort_index": process.pid})
    for kind, placed in drawn.items():
        for lane in sorted({one.lane for one in placed}):
            tid = _tid(kind, lane)
            yield _meta(process, "thread_name", tid, {"name": kind if lane == 0 else f"{kind} {lane + 1}"})
            yield _meta(process, "thread_sort_index", tid, {"sort_index": tid})


def _meta(process: _Process, name: str, tid: int, args: dict[str, Any]) -> TraceEvent:
    return TraceEvent("M", name, process.pid, tid, 0.0, args=args)
