"""Was the load what the workload says, and could the server bear it?

Pure. Two ways in which the numbers of an open loop lie. A client that sends late offers less load, and smoother, than
it reports, and hides the wait from every latency (Tene: "coordinated omission"): `dispatch`. A server that gets more
than it can do has no steady state, so its latencies measure how long the run was: `saturation`.
"""

from bisect import bisect_left
from collections.abc import Sequence

from msgspec import Struct

from launch.evaluation.intervals import Estimate, percentile, slope
from launch.evaluation.measures import latencies
from launch.evaluation.results import RequestResult

LAG_LIMIT_S = 0.010
LAG_TO_TTFT = 0.1
RATE_SHORTFALL = 0.02
LEFT_OVER = 0.01
"""What a growing backlog must grow by to be worth a word: 1 % of the load."""


class Dispatch(Struct, frozen=True, kw_only=True):
    """How late the client sent: `sent_s` - `arrival_s`."""

    lag_p50_s: float | None
    lag_p99_s: float | None
    lag_max_s: float | None
    planned_per_s: float | None
    sent_per_s: float | None
    complaint: str | None  # why the numbers lie; None: they do not

    @property
    def honest(self) -> bool:
        return self.complaint is None


class Saturation(Struct, frozen=True, kw_only=True):
    ttft_growth: Estimate | None  # seconds per second of arrivals; None: too few requests to tell
    backlog_growth: Estimate | None  # requests under way, per request that arrives
    complaint: str | None  # why there is no steady state; None: none was found

    @property
    def found(self) -> bool:
        return self.complaint is not None


def dispatch(results: Sequence[RequestResult]) -> Dispatch:
    """Of an open loop. It lies if the rate falls short by 2 %, or if the p99 of the lag is worth a tenth of a TTFT."""
    lags = [result.sent_s - result.arrival_s for result in results]
    p99 = percentile(lags, 99)
    typical = percentile([ttft for ttft in (latencies(result).ttft_s for result in results) if ttft is not None], 50)
    planned = _rate([result.arrival_s for result in results])
    sent = _rate([result.sent_s for result in results])
    complaint = None
    if planned is not None and sent is not None and sent < (1.0 - RATE_SHORTFALL) * planned:
        complaint = (
            f"the client sent {sent:.4g} requests/s where {planned:.4g} were planned: the load is not the one named"
        )
    elif p99 is not None and p99.value > max(LAG_LIMIT_S, LAG_TO_TTFT * (typical.value if typical else 0.0)):
        complaint = (
            f"1 % of the requests left {p99.value * 1000:.3g} ms late or later: the server saw gentler arrivals than"
            " planned, and the wait is in no latency"
        )
    p50 = percentile(lags, 50)
    return Dispatch(
        lag_p50_s=p50.value if p50 else None,
        lag_p99_s=p99.value if p99 else None,
        lag_max_s=max(lags, default=None),
        planned_per_s=planned,
        sent_per_s=sent,
        complaint=complaint,
    )


def saturation(results: Sequence[RequestResult]) -> Saturation:
    """Of an open loop: does the wait, or the number under way, grow for as long as requests arrive?

    Both, because a server that turns away or times out keeps its TTFT, and one that queues elsewhere its backlog.
    """
    ordered = sorted(results, key=lambda result: result.arrival_s)
    first = [(result.arrival_s, result.token_s[0] - result.sent_s) for result in ordered if result.token_s]
    ttft = slope([at for at, _ in first], [wait for _, wait in first])
    rate = _rate([result.arrival_s for result in ordered])
    arrivals, ends = [result.arrival_s for result in ordered], sorted(result.end_s for result in ordered)
    backlog = slope(arrivals, [index - bisect_left(ends, at) for index, at in enumerate(arrivals)])
    if backlog is not None and rate is not None:
        backlog = _divided(backlog, rate)
    complaint = None
    if _grows(ttft):
        complaint = f"TTFT grows by {ttft.value * 1000:.3g} ms with every second of load" if ttft else None
    elif _grows(backlog):
        complaint = f"of 100 requests that arrive, {backlog.value * 100:.3g} are left over" if backlog else None
    return Saturation(ttft_growth=ttft, backlog_growth=backlog, complaint=complaint)


def _grows(growth: Estimate | None) -> bool:
    return growth is not None and growth.low is not None and growth.low > 0.0 and growth.value > LEFT_OVER


def _divided(estimate: Estimate, by: float) -> Estimate:
    return Estimate(
        estimate.value / by,
        estimate.low / by if estimate.low is not None else None,
        estimate.high / by if estimate.high is not None else None,
    )


def _rate(times: Sequence[float]) -> float | None:
    span = max(times) - min(times) if times else 0.0
    return (len(times) - 1) / span if span > 0.0 else None
