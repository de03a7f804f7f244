"""Is a difference found where there is one, and only there?"""

import math

import numpy as np
import pytest
from scipy import stats  # type: ignore[import-untyped]  # scipy ships no type information

from launch.evaluation.compare import Measure, Scale, Side, Verdict, compare, pairs_of, schedule
from launch.evaluation.intervals import Estimate
from launch.evaluation.regions import Cell, regions, statement
from launch.evaluation.slo import Slo

TTFT = Measure(name="TTFT")
RATE = Measure(name="goodput", higher_is_better=True)
SHARE = Measure(name="attainment", scale=Scale.DIFFERENCE, higher_is_better=True)


def test_runs_alternate() -> None:
    assert "".join(schedule(4)) == "ABBAABBA"
    assert pairs_of(schedule(3), [1.0, 2.0, 4.0, 3.0, 5.0]) == ((1.0, 2.0), (3.0, 4.0))


def test_a_difference_has_the_paired_t_interval() -> None:
    pairs = [(0.5, 0.7), (0.6, 0.75), (0.55, 0.8), (0.4, 0.65)]
    compared = compare({SHARE: pairs})["attainment"]
    expected = stats.ttest_rel([b for _, b in pairs], [a for a, _ in pairs]).confidence_interval(0.99)
    assert compared.effect is not None
    assert compared.effect.value == pytest.approx(0.2125)
    assert (compared.effect.low, compared.effect.high) == pytest.approx(tuple(expected))
    assert compared.verdict is Verdict.B_BETTER


def test_a_ratio_is_compared_by_its_logarithm() -> None:
    compared = compare({TTFT: [(1.0, 2.0), (1.0, 2.1), (2.0, 3.8), (2.0, 4.1)]})["TTFT"]
    logs = [math.log(ratio) for ratio in (2.0, 2.1, 1.9, 2.05)]
    expected = stats.ttest_1samp(logs, 0.0).confidence_interval(0.99)
    assert compared.effect is not None
    assert compared.effect.value == pytest.approx(math.expm1(np.mean(logs)))
    assert (compared.effect.low, compared.effect.high) == pytest.approx(tuple(np.expm1(expected)))
    assert compared.verdict is Verdict.A_BETTER  # a latency: twice is worse
    assert compare({RATE: [(1.0, 2.0), (1.0, 2.1), (2.0, 3.8), (2.0, 4.1)]})["goodput"].verdict is Verdict.B_BETTER
    with pytest.raises(ValueError, match="no ratio"):
        compare({TTFT: [(0.0, 1.0)]})


def test_a_difference_too_small_to_matter_is_none() -> None:
    compared = compare({TTFT: [(1.0, 1.010), (1.0, 1.011), (1.0, 1.009)] * 3})["TTFT"]
    assert compared.effect is not None
    assert compared.effect.low is not None
    assert compared.effect.low > 0.0  # it is there
    assert compared.verdict is Verdict.NO_DIFFERENCE  # 1 % is not worth a word


def test_the_statement_says_what_is_not_known() -> None:
    text = compare({TTFT: [(1.0, 1.2), (1.0, 0.9), (1.0, 1.1)]})["TTFT"].statement
    assert text.startswith("TTFT: no difference; B against A ")
    assert "99 % interval" in text
    assert "not ruled out" in text
    sure = compare({TTFT: [(1.0, 1.0), (1.0, 1.001), (1.0, 0.999)] * 2})["TTFT"].statement
    assert "not ruled out" not in sure
    assert compare({TTFT: [(1.0, 9.0)]})["TTFT"].statement == "TTFT: no difference shown; 1 pair(s) have no interval"


def test_shares_differ_by_one_at_most() -> None:
    effect = compare({SHARE: [(0.0, 1.0), (0.1, 0.9), (0.3, 0.4)]})["attainment"].effect
    assert effect is not None
    assert effect.value == pytest.approx(1.9 / 3)
    assert (effect.low, effect.high) == (-1.0, 1.0)  # Student's t says -2.1 and 3.3


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_pairs_of_equals_have_no_interval(share: float) -> None:
    """Student's would be a point, and claim that no difference is possible."""
    compared = compare({SHARE: [(share, share)] * 6})["attainment"]
    assert compared.effect == Estimate(0.0)
    assert compared.statement == (
        "attainment: no difference shown; 6 pairs were each the same on both sides: no interval"
    )
    assert compare({SHARE: [(0.0, 1.0)] * 6})["attainment"].verdict is Verdict.B_BETTER


def test_measures_share_one_chance_to_be_wrong() -> None:
    pairs = [(0.5, 0.7), (0.6, 0.75), (0.55, 0.8), (0.4, 0.65)]
    both = compare({SHARE: pairs, TTFT: pairs})
    with pytest.raises(ValueError, match="two measures have one name"):
        compare({TTFT: pairs, Measure(name="TTFT", higher_is_better=True): pairs})
    assert both["TTFT"].confidence == pytest.approx(0.995)


def test_the_map_names_the_winner_of_each_cell() -> None:
    slo = Slo(ttft_s=0.5, tpot_s=0.05)
    long, short, middle = (Cell(prompt_tokens=tokens, output_tokens=64, slo=slo) for tokens in (4096, 64, 512))
    a_wins = [(0.9, 0.5), (0.92, 0.55), (0.91, 0.52), (0.95, 0.5), (0.9, 0.5)]
    found = regions(
        {
            short: a_wins,
            long: [(b, a) for a, b in a_wins],
            middle: [(0.7, 0.71), (0.72, 0.7), (0.7, 0.7), (0.71, 0.7), (0.69, 0.7)],
        }
    )
    assert [(region.cell, region.winner) for region in found] == [(short, Side.A), (long, Side.B), (middle, None)]
    assert found[0].comparison.measure.name == "64 -> 64 tokens, TTFT 500 ms, TPOT 50 ms"
    assert found[0].shares == pytest.approx((0.916, 0.514))
    assert statement(found[0]).endswith("pairs); A kept it for 91.6 % of the requests, B for 51.4 %")
