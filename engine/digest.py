"""Did a page arrive as it was sent?

Eight bytes per page, a function of the page's bytes alone: equal on every device, at every place in the pool. Not
cryptographic: it finds damage (a lost piece, a flipped bit, exchanged rows, a stale page), not an attacker. Called by
`engine.pool` on the engine thread.

A page is a matrix of 64-bit words, one row per (layer, k|v, token). Its row sums and column sums, modulo 2**64, are all
that is read from memory-sized data, and sums are what every device does at the speed of its memory. Any change of one
word changes exactly one row sum and one column sum; an exchange of rows or columns changes their order. So each sum is
keyed by its place and scrambled by a bijection, the output function of SplitMix64 (Steele, Lea, Flood, "Fast Splittable
Pseudorandom Number Generators", OOPSLA '14), before they are added up: an undetected change is a 64-bit coincidence.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.pages import runs

_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def digest(words: Tensor, pages: Sequence[int]) -> bytes:
    """
    Args:
        words: int64 [pages of the pool, rows, columns], contiguous.
        pages: which of them.

    Returns:
        8 little-endian bytes per page, in the order of `pages`.
    """
    if not pages:
        return b""
    sums = torch.cat([_sums(words[run.start : run.start + run.length]) for run in runs(pages)])
    places = torch.arange(1, sums.shape[1] + 1, device=sums.device)
    digests = _splitmix64(sums + places * _signed(_GAMMA)).sum(dim=1)
    return digests.cpu().numpy().astype("<i8").tobytes()


def _sums(pages: Tensor) -> Tensor:
    """[pages, rows, columns] -> [pages, columns + rows]; integer sums wrap."""
    return torch.cat([pages.sum(dim=1), pages.sum(dim=2)], dim=1)


def _splitmix64(z: Tensor) -> Tensor:
    z = (z ^ _shift_right(z, 30)) * _signed(_MIX_1)
    z = (z ^ _shift_right(z, 27)) * _signed(_MIX_2)
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """The logical shift; torch's own copies the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    """The int64 with the same bits."""
    return value - (1 << 64) if value >> 63 else value
