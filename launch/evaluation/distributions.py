"""What are the quantiles of the distributions that intervals are made of?

Pure; the tests compare with SciPy, which is too large a dependency for three functions.
"""

import math
from functools import lru_cache
from statistics import NormalDist

import numpy as np

_TINY = 1e-300
_LENTZ_STEPS = 500


def normal_quantile(probability: float) -> float:
    return NormalDist().inv_cdf(probability)


def binomial_quantile(probability: float, trials: int, success: float) -> int:
    """The smallest k with P(X <= k) >= `probability`."""
    k = np.arange(trials + 1)
    log_factorial = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, trials + 1)))))
    log_ways = log_factorial[trials] - log_factorial - log_factorial[::-1]
    mass = np.exp(log_ways + k * math.log(success) + (trials - k) * math.log1p(-success))
    return min(int(np.searchsorted(np.cumsum(mass), probability * (1.0 - 1e-12))), trials)


@lru_cache(maxsize=1024)
def student_t_quantile(probability: float, freedom: float) -> float:
    """By bisection, and kept: a report asks for the same few again and again."""
    if probability < 0.5:
        return -student_t_quantile(1.0 - probability, freedom)
    low, high = 0.0, 1.0
    while student_t_cdf(high, freedom) < probability:
        low, high = high, high * 2.0
    for _ in range(100):
        middle = (low + high) / 2.0
        if student_t_cdf(middle, freedom) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2.0


def student_t_cdf(t: float, freedom: float) -> float:
    tail = 0.5 * _incomplete_beta(freedom / 2.0, 0.5, freedom / (freedom + t * t))
    return 1.0 - tail if t > 0 else tail


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularised; the continued fraction of DLMF 8.17.22, evaluated from the side on which it converges fast."""
    if x <= 0.0 or x >= 1.0:
        return min(max(x, 0.0), 1.0)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1.0) / (a + b + 2.0):
        return front * _beta_fraction(a, b, x) / a
    return 1.0 - front * _beta_fraction(b, a, 1.0 - x) / b


def _beta_fraction(a: float, b: float, x: float) -> float:
    """Lentz's method (Thompson and Barnett, 1986)."""
    c, d = 1.0, 1.0 / _nonzero(1.0 - (a + b) * x / (a + 1.0))
    value = d
    for m in range(1, _LENTZ_STEPS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1.0 / _nonzero(1.0 + term * d)
            c = _nonzero(1.0 + term / c)
            value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return value


def _nonzero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
