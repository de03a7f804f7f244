"""What would a server with one queue answer, and when?

An event simulation without a clock: requests are served one after the other, as a prefill worker serves prompts, then
stream their tokens at a fixed gap. With Poisson arrivals and one service time it is M/D/1, whose distribution of
waiting times is known exactly, so tests can ask whether a search finds what it should.
"""

import math
from collections.abc import Callable, Iterable

from scipy.optimize import brentq  # type: ignore[import-untyped]  # scipy ships no type information

from launch.evaluation.results import Outcome, RequestResult
from launch.evaluation.workload import Request


def serve(
    requests: Iterable[Request],
    service_s: Callable[[Request], float],
    *,
    gap_s: float = 0.0,
    room: float = math.inf,
    lag_s: Callable[[Request], float] = lambda _: 0.0,
) -> list[RequestResult]:
    """
    Args:
        room: who would have to wait longer than this is turned away.
        lag_s: how late the client sends each request.
    """
    free_at = 0.0
    results = []
    for request in sorted(requests, key=lambda request: request.arrival_s + lag_s(request)):
        sent = request.arrival_s + lag_s(request)
        start = max(sent, free_at)
        rejected = start - sent > room
        tokens: tuple[float, ...] = ()
        if not rejected:
            free_at = start + service_s(request)
            tokens = tuple(free_at + gap_s * number for number in range(request.output_tokens))
        results.append(
            RequestResult(
                index=request.index,
                arrival_s=request.arrival_s,
                sent_s=sent,
                token_s=tokens,
                end_s=sent if rejected else tokens[-1],
                outcome=Outcome.REJECTED if rejected else Outcome.COMPLETED,
                prompt_tokens=request.prompt_tokens,
                asked_tokens=request.output_tokens,
            )
        )
    return results


def waits_at_most(wait_s: float, rate_per_s: float, service_s: float) -> float:
    """P(wait <= `wait_s`) in M/D/1, by Erlang's sum (1909); it loses its digits where `wait_s` is many services."""
    if rate_per_s * service_s >= 1.0:
        return 0.0
    terms = (
        math.exp(rate_per_s * (wait_s - k * service_s))
        * (-rate_per_s * (wait_s - k * service_s)) ** k
        / math.factorial(k)
        for k in range(int(wait_s / service_s + 1e-9) + 1)
    )
    return (1.0 - rate_per_s * service_s) * sum(terms)


def capacity(target: float, wait_s: float, service_s: float) -> float:
    """The rate at which a share `target` of the requests waits at most `wait_s`."""
    return float(brentq(lambda rate: waits_at_most(wait_s, rate, service_s) - target, 1e-6, 1.0 / service_s - 1e-9))
