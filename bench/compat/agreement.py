"""Do a tool and this project measure the same in the same requests?

Pure. The tool brings what it wrote down (`Account`), the tap what went over the wire (`Streamed`); ours are the
definitions of `launch.evaluation.measures`, on exactly the requests that the tool reports, found by name. Where a
tool's own percentile is defined otherwise, or it has none, the statistic is taken of its records, as NumPy does.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from statistics import fmean

import numpy as np
from msgspec import Struct

from bench.compat.streamed import Streamed
from bench.compat.tool import Account, Quantity, Record, Statistic, agree
from launch.evaluation.measures import Latencies, Measures, Summary, latencies, measure
from launch.evaluation.results import Outcome, RequestResult


class Row(Struct, frozen=True, kw_only=True):
    """One statistic of one quantity, by both."""

    quantity: Quantity
    statistic: Statistic
    from_records: bool  # computed of the tool's records, not told by it
    theirs_s: float
    ours_s: float
    by_text_s: float | None  # ours, timed by events with text only, as the tools have it; None: to the end

    @property
    def agrees(self) -> bool:
        return bool(agree(self.theirs_s, self.ours_s))

    @property
    def agrees_by_text(self) -> bool:
        return bool(agree(self.theirs_s, self.ours_s if self.by_text_s is None else self.by_text_s))


class Widest(Struct, frozen=True, kw_only=True):
    """The request, or gap, in which the two differ most."""

    quantity: Quantity
    compared: int
    agreeing: int
    mean_difference_s: float  # theirs - ours
    theirs_s: float
    ours_s: float


class Agreement(Struct, frozen=True, kw_only=True):
    """
    Attributes:
        compared: requests that the tool reports and the tap has heard, and that completed.
        unheard: names that the tool reports and no stream on the wire has.
        left_out: streams on the wire that the tool does not report: its probes and warm-up.
        incomplete: requests that the tool reports and the tap has heard, and that did not complete or showed no text.
        told: compared requests with a usage at the end.
        miscounted: those of them whose tokens by events are another number.
        textless: compared requests with a token that shows no text.
    """

    compared: int
    unheard: tuple[str, ...]
    left_out: int
    incomplete: int
    told: int
    miscounted: int
    textless: int
    fewest_tokens: int
    most_tokens: int
    rows: tuple[Row, ...]
    widest: tuple[Widest, ...]


def agreement(streams: Sequence[Streamed], account: Account) -> Agreement:
    """
    Raises:
        ValueError: nothing can be compared.
    """
    named = {name: stream for stream in streams for name in stream.names}
    heard = [(record, named[record.name]) for record in account.records if record.name in named]
    pairs = [
        (record, stream)
        for record, stream in heard
        if stream.result.outcome is Outcome.COMPLETED
        and stream.shown_s  # a tool has no times of an answer without text
    ]
    if not pairs:
        raise ValueError(f"none of {len(account.records)} reported requests is among {len(streams)} on the wire")
    tokens = [len(stream.result.token_s) for _, stream in pairs]
    told = [stream for _, stream in pairs if stream.told is not None]
    return Agreement(
        compared=len(pairs),
        unheard=tuple(record.name for record in account.records if record.name not in named),
        left_out=len(streams) - len({id(stream) for _, stream in heard}),
        incomplete=len(heard) - len(pairs),
        told=len(told),
        miscounted=sum(stream.counted != stream.told for stream in told),
        textless=sum(len(stream.shown_s) < len(stream.result.token_s) for _, stream in pairs),
        fewest_tokens=min(tokens),
        most_tokens=max(tokens),
        rows=tuple(_rows([record for record, _ in pairs], [stream for _, stream in pairs], account)),
        widest=tuple(_widest([(record, stream.result) for record, stream in pairs])),
    )


def _rows(records: Sequence[Record], streams: Sequence[Streamed], account: Account) -> Iterator[Row]:
    results = [stream.result for stream in streams]
    measures = measure(results)
    for quantity, read in _QUANTITIES.items():
        values = [value for record in records for value in read.theirs(record)]
        by_text = [value for stream in streams for value in read.by_text(stream)]
        if quantity == "itl" and not values:  # a tool without gaps weighs its means of requests by their tokens
            by_text = [value for stream in streams for value in _tpot_by_text(stream) * _gaps(stream)]
        for statistic, ours_s in _ours(quantity, measures, results).items():
            told_s = account.statistics.get(quantity, {}).get(statistic)
            if told_s is None and not values:
                continue
            yield Row(
                quantity=quantity,
                statistic=statistic,
                from_records=told_s is None,
                theirs_s=_statistic(values, statistic) if told_s is None else told_s,
                ours_s=ours_s,
                by_text_s=_statistic(by_text, statistic) if by_text else None,
            )


def _ours(quantity: Quantity, measures: Measures, results: Sequence[RequestResult]) -> dict[Statistic, float]:
    if quantity == "latency":  # not among ours: to the end of the exchange
        return {"mean": fmean(result.end_s - result.sent_s for result in results)}
    summaries: dict[str, Summary] = {"ttft": measures.ttft, "itl": measures.itl, "tpot": measures.tpot}
    summary = summaries.get(quantity, measures.e2e)
    means = {} if summary.mean is None else {"mean": summary.mean.value}
    return {**means, **{name: estimate.value for name, estimate in summary.percentiles.items()}}


def _statistic(values: Sequence[float], statistic: Statistic) -> float:
    return fmean(values) if statistic == "mean" else float(np.percentile(values, float(statistic.removeprefix("p"))))


class _Reading(Struct, frozen=True):
    """How a quantity is read off both sides of one request."""

    theirs: Callable[[Record], Sequence[float]]
    ours: Callable[[RequestResult, Latencies], Sequence[float]]
    by_text: Callable[[Streamed], Sequence[float]]


def _some(value: float | None) -> tuple[float, ...]:
    return () if value is None else (value,)


def _gaps(stream: Streamed) -> int:
    return len(stream.result.token_s) - 1


def _tpot_by_text(stream: Streamed) -> tuple[float, ...]:
    """From the first text to the last, over all tokens: the tools take their number from the usage."""
    gaps = _gaps(stream)
    return ((stream.shown_s[-1] - stream.shown_s[0]) / gaps,) if gaps > 0 else ()


_QUANTITIES: dict[Quantity, _Reading] = {
    "ttft": _Reading(
        lambda record: _some(record.ttft_s),
        lambda _, ours: _some(ours.ttft_s),
        lambda stream: (stream.shown_s[0] - stream.result.sent_s,),
    ),
    "tpot": _Reading(lambda record: _some(record.tpot_s), lambda _, ours: _some(ours.tpot_s), _tpot_by_text),
    "itl": _Reading(
        lambda record: record.gaps_s,
        lambda _, ours: ours.gaps_s,
        lambda stream: [later - earlier for earlier, later in pairwise(stream.shown_s)],
    ),
    "e2e": _Reading(
        lambda record: _some(record.e2e_s),
        lambda _, ours: _some(ours.e2e_s),
        lambda stream: (stream.shown_s[-1] - stream.result.sent_s,),
    ),
    "latency": _Reading(
        lambda record: _some(record.latency_s), lambda result, _: (result.end_s - result.sent_s,), lambda _: ()
    ),
}


def _widest(pairs: Sequence[tuple[Record, RequestResult]]) -> Iterator[Widest]:
    both = [(record, result, latencies(result)) for record, result in pairs]
    for quantity, read in _QUANTITIES.items():
        sides = [(read.theirs(record), read.ours(result, ours)) for record, result, ours in both]
        values = [pair for theirs, ours in sides if len(theirs) == len(ours) for pair in zip(theirs, ours, strict=True)]
        if values:
            theirs_s, ours_s = max(values, key=lambda pair: abs(pair[0] - pair[1]))
            yield Widest(
                quantity=quantity,
                compared=len(values),
                agreeing=sum(bool(agree(*pair)) for pair in values),
                mean_difference_s=fmean(theirs - ours for theirs, ours in values),
                theirs_s=theirs_s,
                ours_s=ours_s,
            )
