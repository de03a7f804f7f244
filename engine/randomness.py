"""Which random number decides a token?

A function of (seed, token index, stream) alone, so a resumed request, another batch and another worker draw the same.
It is Philox4x64-10, a counter-based generator: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2,
3", SC'11, section 3.3. Written out here, because a library's object for one number costs more than the arithmetic, and
because transcripts of seeded requests may not change with a library. Called by `engine.sampling` on the engine thread.
"""

_MASK = (1 << 64) - 1
_ROUNDS = 10
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_KEY_STEPS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)


def philox4x64(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """The block of four 64-bit words that belongs to a counter of four words and a key of two."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0, product1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1 = (product1 >> 64) ^ c1 ^ k0, product1 & _MASK
        c2, c3 = (product0 >> 64) ^ c3 ^ k1, product0 & _MASK
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3


def uniform(seed: int, index: int, stream: int = 0) -> float:
    """A number in [0, 1), a multiple of 2**-53: the upper bits of the block's first word.

    Args:
        seed: a signed 64-bit integer; a negative one stands for its two's complement.
        index: which output token, from 0.
        stream: another sequence of the same seed.
    """
    return (philox4x64((index, stream, 0, 0), (seed & _MASK, 0))[0] >> 11) * 2.0**-53
