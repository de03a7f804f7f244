"""Which requests does an evaluation send, and when?

Pure. A `Workload` is the whole plan: made from lengths that are drawn, from a trace, or from prompts, and the same for
the same seed. Token ids are made of it one request at a time (`launch.evaluation.content`), because a trace of long
prompts does not fit in memory.
"""

from collections.abc import Sequence

from msgspec import Struct

from launch.evaluation.arrivals import Arrivals, TraceClock, TraceRate, arrive
from launch.evaluation.draws import Purpose
from launch.evaluation.lengths import Lengths, draw
from launch.evaluation.scaling import UNSCALED, Scale
from launch.evaluation.traces import PromptRecord, TraceRecord


class Request(Struct, frozen=True, kw_only=True):
    index: int  # in order of arrival, from 0
    arrival_s: float  # since the start of the run
    output_tokens: int  # to ask for
    prompt_tokens: int | None = None  # None: only the server can count the tokens of `text`
    text: str | None = None  # None: the prompt is token ids
    blocks: tuple[int, ...] = ()  # equal ids: equal tokens
    block_tokens: int | None = None  # tokens per id in `blocks`


class Workload(Struct, frozen=True, kw_only=True):
    requests: tuple[Request, ...]
    notes: tuple[str, ...] = ()  # what was done to the source; a report must carry them


def synthetic(
    prompts: Lengths, outputs: Lengths, arrivals: Arrivals, count: int, seed: int, *, first: int = 0
) -> Workload:
    """`count` requests with drawn lengths.

    Args:
        first: the index of the first one. A run that starts where another ended has prompts of its own, so that no
            server can answer it from a cache of the other.
    """
    starts = arrive(arrivals, count, seed, first=first)
    return Workload(
        requests=tuple(
            Request(
                index=index,
                arrival_s=start,
                prompt_tokens=draw(prompts, seed, Purpose.PROMPT_LENGTH, index),
                output_tokens=draw(outputs, seed, Purpose.OUTPUT_LENGTH, index),
            )
            for index, start in enumerate(starts, start=first)
        )
    )


def from_trace(
    records: Sequence[TraceRecord], arrivals: Arrivals, seed: int, scale: Scale = UNSCALED, *, first: int = 0
) -> Workload:
    """The requests of a trace in its order, and on its clock if `arrivals` is one.

    Args:
        first: the index of the first of these records in the trace.
    """
    if isinstance(arrivals, TraceClock | TraceRate):
        starts = arrive(arrivals, len(records), seed, recorded_s=[record.at_s for record in records])
    else:
        starts = arrive(arrivals, len(records), seed, first=first)
    return Workload(
        requests=tuple(
            Request(
                index=index,
                arrival_s=start,
                prompt_tokens=scaled.prompt_tokens,
                output_tokens=scaled.output_tokens,
                blocks=scaled.blocks,
                block_tokens=scale.block_tokens if scaled.blocks else None,
            )
            for index, (scaled, start) in enumerate(zip(map(scale.apply, records), starts, strict=True), start=first)
        ),
        notes=scale.notes(records),
    )


def from_prompts(
    records: Sequence[PromptRecord], outputs: Lengths, arrivals: Arrivals, seed: int, *, first: int = 0
) -> Workload:
    """Prompts as they stand in a file; `outputs` holds for those that do not say how long their answer is."""
    starts = arrive(arrivals, len(records), seed, first=first)
    return Workload(
        requests=tuple(
            Request(
                index=index,
                arrival_s=start,
                text=record.prompt,
                output_tokens=record.output_tokens or draw(outputs, seed, Purpose.OUTPUT_LENGTH, index),
            )
            for index, (record, start) in enumerate(zip(records, starts, strict=True), start=first)
        )
    )
