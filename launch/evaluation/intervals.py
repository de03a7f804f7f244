"""How well does a sample know a mean, a percentile or a share?

Pure. Percentiles are interpolated linearly between order statistics (definition 7 of Hyndman and Fan, 1996: NumPy's
default, and `vllm bench`'s). Intervals hold 95 % unless asked otherwise:

- a percentile of independent values: from order statistics, whose ranks are binomial; no distribution is assumed. A
  side that no rank can bound is None: 100 values do not bound their p99 from above. Of two values the p99 is almost
  surely above both, and the interpolated one is not; the interval is then widened to hold it;
- a mean of independent values: Student's t;
- mean and percentile of values that come in clusters, as the gaps of one request do: the variance between clusters
  (Woodruff, 1952, for percentiles). To take 10,000 gaps of 100 requests for 10,000 observations makes an interval ten
  times too narrow;
- a share of independent requests: Wilson (1927), which stays inside 0 to 1 and is of use when all or none met the SLO.
"""

import math
from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import ArrayLike, NDArray

from launch.evaluation.distributions import binomial_quantile, normal_quantile, student_t_quantile

CONFIDENCE = 0.95

_Floats = NDArray[np.float64]


class Estimate(Struct, frozen=True):
    """A value and its interval; a bound that the sample does not know is None."""

    value: float
    low: float | None = None
    high: float | None = None


def percentile(values: ArrayLike, percent: float, confidence: float = CONFIDENCE) -> Estimate | None:
    """Of independent values; None of none."""
    ordered = _floats(values)
    if ordered.size == 0:
        return None
    ordered.sort()
    share, count = percent / 100.0, ordered.size
    tail = (1.0 - confidence) / 2.0
    low_rank, high_rank = 0, count + 1  # from 1; nothing is known beyond the smallest and the largest
    if 0.0 < share < 1.0:
        low_rank = binomial_quantile(tail, count, share)
        high_rank = binomial_quantile(1.0 - tail, count, share) + 1
    value = float(np.percentile(ordered, percent))
    return Estimate(
        value=value,
        low=min(float(ordered[low_rank - 1]), value) if low_rank >= 1 else None,
        high=max(float(ordered[high_rank - 1]), value) if high_rank <= count else None,
    )


def mean(values: ArrayLike, confidence: float = CONFIDENCE) -> Estimate | None:
    """Of independent values; None of none, and no interval of one."""
    numbers = _floats(values)
    if numbers.size == 0:
        return None
    centre = float(numbers.mean())
    if numbers.size == 1:
        return Estimate(centre)
    half = float(numbers.std(ddof=1)) / math.sqrt(numbers.size) * _two_sided_t(confidence, numbers.size - 1)
    return Estimate(centre, centre - half, centre + half)


def clustered_mean(clusters: Sequence[ArrayLike], confidence: float = CONFIDENCE) -> Estimate | None:
    """Of all values; the clusters are independent, the values in one are not."""
    arrays = _filled(clusters)
    if not arrays:
        return None
    centre = float(np.concatenate(arrays).mean())
    error = _ratio_error([float(array.sum()) - centre * array.size for array in arrays], sum(a.size for a in arrays))
    if error is None:
        return Estimate(centre)
    half = error * _two_sided_t(confidence, len(arrays) - 1)
    return Estimate(centre, centre - half, centre + half)


def clustered_percentile(
    clusters: Sequence[ArrayLike], percent: float, confidence: float = CONFIDENCE
) -> Estimate | None:
    """Of all values; the interval of the share below the value, read off at the values that have these shares."""
    arrays = _filled(clusters)
    if not arrays:
        return None
    ordered = np.sort(np.concatenate(arrays))
    value, share = float(np.percentile(ordered, percent)), percent / 100.0
    below = [float(np.count_nonzero(array <= value)) - share * array.size for array in arrays]
    error = _ratio_error(below, ordered.size)
    if error is None:
        return Estimate(value)
    half = error * _two_sided_t(confidence, len(arrays) - 1)
    low, high = share - half, share + half
    return Estimate(
        value=value,
        low=float(np.percentile(ordered, 100.0 * low)) if low >= 0.0 else None,
        high=float(np.percentile(ordered, 100.0 * high)) if high <= 1.0 else None,
    )


def wilson(successes: float, trials: float, confidence: float = CONFIDENCE) -> Estimate | None:
    """Of a share; the numbers need not be whole, because trials that resemble each other count for fewer."""
    if trials <= 0:
        return None
    z, share = normal_quantile((1.0 + confidence) / 2.0), successes / trials
    centre = (share + z * z / (2.0 * trials)) / (1.0 + z * z / trials)
    half = z / (1.0 + z * z / trials) * math.sqrt(share * (1.0 - share) / trials + z * z / (4.0 * trials * trials))
    return Estimate(share, max(centre - half, 0.0), min(centre + half, 1.0))


def effective_trials(hits: Sequence[bool], batches: int = 20) -> float:
    """As how many independent requests do these, in order of arrival, count?

    Requests that wait in one queue miss their SLO together. The variance between batches of neighbours tells how much
    (batch means, Law and Kelton): the trials are divided by its ratio to the variance of independent ones. A ratio
    below 1 is chance and counts as 1, and so does that of batches too small to tell.
    """
    size = len(hits) // batches
    share = sum(hits) / len(hits) if hits else 0.0
    if size < 2 or not 0.0 < share < 1.0:
        return float(len(hits))
    means = np.array(hits[len(hits) - size * batches :], dtype=np.float64).reshape(batches, size).mean(axis=1)
    ratio = float(means.var(ddof=1)) * size / (share * (1.0 - share))
    return len(hits) / max(ratio, 1.0)


def slope(at: ArrayLike, values: ArrayLike, batches: int = 10, confidence: float = CONFIDENCE) -> Estimate | None:
    """How fast independent or wandering values grow; None of fewer than two values per batch.

    From the steps between means of successive batches, not from a line of least squares: a queue at its capacity is a
    random walk, in which such a line finds a trend that is not there (Granger and Newbold, 1974). The steps of a random
    walk are independent; those of a steady queue cancel out, which makes the interval too wide rather than too narrow.
    """
    times, numbers = _floats(at), _floats(values)
    size = times.size // batches
    if size < 2:
        return None
    order = np.argsort(times, kind="stable")[times.size - size * batches :]
    time_steps = np.diff(times[order].reshape(batches, size).mean(axis=1))
    steps = np.diff(numbers[order].reshape(batches, size).mean(axis=1))
    span = float(time_steps.sum())
    if span <= 0.0:
        return None
    centre = float(steps.sum()) / span
    residuals = steps - centre * time_steps
    error = math.sqrt(steps.size / (steps.size - 1) * float((residuals * residuals).sum())) / span
    half = error * _two_sided_t(confidence, steps.size - 1)
    return Estimate(centre, centre - half, centre + half)


def _ratio_error(residuals: Sequence[float], values: int) -> float | None:
    """Standard error of a mean over clusters of unlike sizes, of a ratio's linearisation; None of one cluster."""
    count = len(residuals)
    if count < 2:
        return None
    return math.sqrt(count / (count - 1) * sum(residual * residual for residual in residuals)) / values


def _two_sided_t(confidence: float, freedom: int) -> float:
    return student_t_quantile((1.0 + confidence) / 2.0, freedom)


def _filled(clusters: Sequence[ArrayLike]) -> list[_Floats]:
    arrays = [_floats(cluster) for cluster in clusters]
    return [array for array in arrays if array.size]


def _floats(values: ArrayLike) -> _Floats:
    return np.array(values, dtype=np.float64)
