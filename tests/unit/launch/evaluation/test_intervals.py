"""Are the intervals those of SciPy, and do they hold what they promise where SciPy has none?"""

import numpy as np
import pytest
from scipy import stats  # type: ignore[import-untyped]  # scipy ships no type information

from launch.evaluation.distributions import binomial_quantile, normal_quantile, student_t_cdf, student_t_quantile
from launch.evaluation.intervals import (
    clustered_mean,
    clustered_percentile,
    effective_trials,
    mean,
    percentile,
    slope,
    wilson,
)

DRAWS = np.random.Generator(np.random.Philox(key=1))
SAMPLE = DRAWS.lognormal(size=300)


@pytest.mark.parametrize("freedom", [1, 2, 3, 9, 30, 299, 5000])
def test_student_t(freedom: int) -> None:
    for probability in (0.6, 0.9, 0.975, 0.995, 0.9999):
        expected = stats.t.ppf(probability, freedom)
        assert student_t_quantile(probability, freedom) == pytest.approx(expected, rel=1e-9)
        assert student_t_quantile(1 - probability, freedom) == pytest.approx(-expected, rel=1e-9)
    for t in (-3.0, -0.1, 0.0, 0.5, 12.0):
        assert student_t_cdf(t, freedom) == pytest.approx(stats.t.cdf(t, freedom), abs=1e-12)


@pytest.mark.parametrize("trials", [1, 5, 100, 12_345])
@pytest.mark.parametrize("success", [0.5, 0.9, 0.99])
def test_binomial_and_normal(trials: int, success: float) -> None:
    for probability in (0.005, 0.025, 0.5, 0.975, 0.995):
        assert binomial_quantile(probability, trials, success) == stats.binom.ppf(probability, trials, success)
        assert normal_quantile(probability) == pytest.approx(stats.norm.ppf(probability))


@pytest.mark.parametrize("percent", [50, 90, 95, 99])
@pytest.mark.parametrize("count", [1, 2, 20, 100, 300])
def test_a_percentile_is_numpys_and_its_interval_scipys(percent: int, count: int) -> None:
    values = SAMPLE[:count]
    estimate = percentile(values, percent)
    assert estimate is not None
    assert estimate.value == np.percentile(values, percent)
    expected = stats.quantile_test(values, p=percent / 100).confidence_interval(0.95)
    assert estimate.low == (None if np.isnan(expected.low) else min(expected.low, estimate.value))
    assert estimate.high == (None if np.isnan(expected.high) else expected.high)
    if count >= 20:
        assert estimate.low is None or estimate.low == expected.low


def test_a_percentile_by_hand() -> None:
    estimate = percentile([4.0, 1.0, 3.0, 2.0], 50)
    assert estimate is not None
    assert estimate.value == 2.5
    assert (estimate.low, estimate.high) == (None, None)  # 1/16 lies outside 4 values on either side: more than 2.5 %
    of_ten = percentile(range(10), 50)
    assert of_ten is not None
    assert (of_ten.low, of_ten.high) == (1.0, 8.0)  # P(X <= 1) = 11/1024 is less than 2.5 %, P(X <= 2) = 56/1024 more
    assert percentile([], 50) is None


def test_100_values_do_not_bound_their_p99_from_above() -> None:
    estimate = percentile(SAMPLE[:100], 99)
    assert estimate is not None
    assert estimate.low is not None
    assert estimate.high is None


def test_a_mean_has_students_interval() -> None:
    estimate = mean(SAMPLE)
    assert estimate is not None
    expected = stats.ttest_1samp(SAMPLE, 0.0).confidence_interval(0.95)
    assert estimate.value == pytest.approx(SAMPLE.mean())
    assert (estimate.low, estimate.high) == pytest.approx(expected)
    one = mean([3.0])
    assert one is not None
    assert (one.value, one.low, one.high) == (3.0, None, None)
    assert mean([]) is None


@pytest.mark.parametrize(("met", "total"), [(0, 10), (10, 10), (9, 10), (450, 500)])
def test_a_share_has_wilsons_interval(met: int, total: int) -> None:
    estimate = wilson(met, total)
    assert estimate is not None
    expected = stats.binomtest(met, total).proportion_ci(0.95, method="wilson")
    assert (estimate.low, estimate.high) == pytest.approx(expected, abs=1e-12)
    assert wilson(0, 0) is None


def test_clusters_of_one_are_independent_values() -> None:
    of_clusters, of_values = clustered_mean([[value] for value in SAMPLE]), mean(SAMPLE)
    assert of_clusters is not None
    assert of_values is not None
    assert of_clusters.low == pytest.approx(of_values.low)
    assert of_clusters.high == pytest.approx(of_values.high)
    one = clustered_percentile([[1.0, 2.0, 3.0]], 50)
    assert one is not None
    assert (one.value, one.low, one.high) == (2.0, None, None)
    assert clustered_mean([[]]) is clustered_percentile([], 50) is None


def test_intervals_of_clusters_hold_the_truth_where_naive_ones_do_not() -> None:
    """40 requests of 50 gaps, each request with a speed of its own: 95 % +- 4 standard errors of 200 trials."""
    naive = honest = median = 0
    truth = 1.0
    for trial in range(200):
        draws = np.random.Generator(np.random.Philox(key=[2, trial]))
        clusters = [truth + draws.normal() + 0.2 * draws.normal(size=50) for _ in range(40)]
        intervals = (mean(np.concatenate(clusters)), clustered_mean(clusters), clustered_percentile(clusters, 50))
        held = [
            interval is not None
            and interval.low is not None
            and interval.high is not None
            and interval.low <= truth <= interval.high
            for interval in intervals
        ]
        naive, honest, median = naive + held[0], honest + held[1], median + held[2]
    assert naive < 100
    assert honest >= 178
    assert median >= 178


def test_neighbours_that_miss_together_count_for_fewer() -> None:
    alternating = [True, False] * 200
    assert effective_trials(alternating) == 400.0
    together = ([True] * 100 + [False] * 100) * 2
    # 20 batches of 20, ten of them all met: variance of the means 1/4 x 20/19; of independent ones 1/4 / 20
    assert effective_trials(together) == pytest.approx(400 / (20 * 20 / 19))
    assert effective_trials([True] * 400) == 400.0
    assert effective_trials([True, False]) == 2.0
    assert effective_trials([]) == 0.0


def test_slope_by_hand() -> None:
    at = np.arange(20.0)
    exact = slope(at, 3.0 * at + 1.0)
    assert exact is not None
    assert (exact.value, exact.low, exact.high) == pytest.approx((3.0, 3.0, 3.0))
    assert slope(at[:19], at[:19]) is None  # fewer than two per batch
    assert slope(np.zeros(20), at) is None


def test_slope_finds_no_trend_in_random_walks_where_least_squares_do() -> None:
    """95 % +- 4 standard errors of 200 trials."""
    held = least_squares = 0
    for trial in range(200):
        walk = np.cumsum(np.random.Generator(np.random.Philox(key=[3, trial])).normal(size=400))
        growth = slope(np.arange(400.0), walk)
        assert growth is not None
        assert growth.low is not None
        assert growth.high is not None
        held += growth.low <= 0.0 <= growth.high
        least_squares += stats.linregress(np.arange(400.0), walk).pvalue > 0.05
    assert held >= 178
    assert least_squares < 60
