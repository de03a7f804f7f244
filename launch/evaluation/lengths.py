"""How long are the prompts and answers of a synthetic workload?

Pure: the seed is given.
"""

import math
from typing import Annotated

from msgspec import Meta, Struct

from launch.evaluation.draws import Purpose, stream

Tokens = Annotated[int, Meta(ge=1, le=1 << 24)]


class Fixed(Struct, frozen=True, tag="fixed"):
    tokens: Tokens


class Uniform(Struct, frozen=True, tag="uniform"):
    """Every length from `low` to `high`, both included, is as likely."""

    low: Tokens
    high: Tokens

    def __post_init__(self) -> None:
        _check(self.low, self.high)


class LogNormal(Struct, frozen=True, tag="log-normal"):
    """Its logarithm is normal; a length outside `low` to `high` becomes the bound, so bounds may hold many requests."""

    median_tokens: Annotated[float, Meta(gt=0.0, le=1e7)]
    sigma: Annotated[float, Meta(ge=0.0, le=5.0)]  # of the logarithm; 0.7 to 1.3 is what chat traces show
    low: Tokens
    high: Tokens

    def __post_init__(self) -> None:
        _check(self.low, self.high)


Lengths = Fixed | Uniform | LogNormal


def draw(lengths: Lengths, seed: int, purpose: Purpose, index: int) -> int:
    match lengths:
        case Fixed(tokens=tokens):
            return tokens
        case Uniform(low=low, high=high):
            return int(stream(seed, purpose, index).integers(low, high, endpoint=True))
        case LogNormal(median_tokens=median, sigma=sigma, low=low, high=high):
            drawn = stream(seed, purpose, index).lognormal(math.log(median), sigma)
            return round(min(max(drawn, low), high))


def _check(low: int, high: int) -> None:
    if low > high:
        raise ValueError(f"lengths from {low} to {high} tokens are none")
