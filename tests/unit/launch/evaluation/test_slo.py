"""Is attainment counted as the papers count it, with nobody left out?"""

import pytest

from launch.evaluation.results import Outcome, RequestResult
from launch.evaluation.slo import Attainment, Judgement, Slo, attain, judge, pool, scale_curve

SLO = Slo(ttft_s=0.5, tpot_s=0.1, stall_s=0.3, e2e_s=1.0)


def result(*token_s: float, outcome: Outcome = Outcome.COMPLETED, index: int = 0) -> RequestResult:
    return RequestResult(
        index=index,
        arrival_s=float(index),
        sent_s=0.0,
        token_s=token_s,
        end_s=token_s[-1] if token_s else 0.0,
        outcome=outcome,
    )


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ((0.5, 0.6), (True, True, True)),  # a bound that is met exactly is met
        ((0.51, 0.6), (False, True, False)),
        ((0.1, 0.21), (True, False, False)),  # TPOT 0.11
        ((0.1, 0.1, 0.1, 0.1, 0.45), (True, False, False)),  # TPOT 0.0875, but a stall of 0.35
        ((0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.01), (True, True, False)),  # E2E
        ((0.4,), (True, True, True)),  # one token has no gaps to miss
        ((), (False, True, False)),  # no token was in time
    ],
)
def test_a_completed_request(tokens: tuple[float, ...], expected: tuple[bool, bool, bool]) -> None:
    ttft, gaps, every = expected
    slo = Slo(ttft_s=0.5, tpot_s=0.1 + 1e-9, stall_s=0.3, e2e_s=1.0)
    assert judge(result(*tokens), slo) == Judgement(ttft=ttft, gaps=gaps, every=every)


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.REJECTED, Outcome.CUT_OFF])
def test_whatever_does_not_complete_misses_everything(outcome: Outcome) -> None:
    lost = result(0.1, 0.15, outcome=outcome)
    assert judge(lost, SLO) == Judgement(ttft=False, gaps=False, every=False)
    assert judge(lost, Slo()).every is False


def test_attainment_counts_every_request() -> None:
    results = [
        result(0.1, 0.15, index=0),
        result(0.6, 0.65, index=1),
        result(0.1, 0.3, index=2),
        result(outcome=Outcome.REJECTED, index=3),
    ]
    attainments = attain(results, SLO)
    assert attainments.every == Attainment(met=1, total=4, effective_total=4.0)
    assert attainments.ttft_only.met == 2
    assert attainments.gaps_only.met == 2
    share = attainments.every.share()
    assert share is not None
    assert share.value == 0.25
    assert attain([], SLO).every.share() is None


def test_requests_that_miss_together_widen_the_interval() -> None:
    alone = [result(0.1 if index % 2 else 0.9, index=index) for index in range(400)]
    together = [result(0.1 if index < 200 else 0.9, index=index) for index in range(400)]
    narrow, wide = (attain(results, SLO).every.share() for results in (alone, together))
    assert narrow is not None
    assert wide is not None
    assert narrow.value == wide.value == 0.5
    assert narrow.low is not None
    assert wide.low is not None
    assert 0.5 - wide.low > 3 * (0.5 - narrow.low)
    assert attain(list(reversed(together)), SLO) == attain(together, SLO)  # by arrival, however they are listed


def test_runs_that_disagree_count_for_fewer() -> None:
    alike = [Attainment(met=90, total=100, effective_total=100.0), Attainment(met=92, total=100, effective_total=100.0)]
    assert pool(alike) == Attainment(met=182, total=200, effective_total=200.0)
    unlike = [
        Attainment(met=80, total=100, effective_total=100.0),
        Attainment(met=100, total=100, effective_total=100.0),
    ]
    # chi-squared 100 x 0.1^2 / 0.09 twice, over 1
    assert pool(unlike).effective_total == pytest.approx(200 / (2 * 100 * 0.01 / 0.09))
    assert pool([]).share() is None
    assert pool(unlike[:1]) == unlike[0]


def test_the_curve_over_the_scale_of_the_slo() -> None:
    results = [result(0.2, index=0), result(0.4, index=1), result(0.8, index=2)]
    curve = scale_curve(results, Slo(ttft_s=0.4), [0.25, 0.5, 1.0, 2.0])
    assert [(factor, attainments.every.met) for factor, attainments in curve] == [
        (0.25, 0),
        (0.5, 1),
        (1.0, 2),
        (2.0, 3),
    ]
    assert SLO.scaled(2.0) == Slo(ttft_s=1.0, tpot_s=0.2, stall_s=0.6, e2e_s=2.0)
    assert Slo().scaled(2.0) == Slo()
