"""Where does every random number of an evaluation come from?

Pure. From a counter-based generator (Philox, Salmon et al., SC '11) whose key is the seed, what the number is for, and
which request it is for. So no draw depends on another: a longer workload begins with the shorter one, and other lengths
leave the arrivals as they were. NumPy may change how it makes a distribution of a stream (NEP 19); constraints.txt pins
its version.
"""

from enum import IntEnum

import numpy as np

MAX_SEED = (1 << 64) - 1
_INDEX_BITS = 56


class Purpose(IntEnum):
    """Part of the key: to renumber one is to change what every seed means."""

    ARRIVAL = 1
    PROMPT_LENGTH = 2
    OUTPUT_LENGTH = 3
    CONTENT = 4
    BLOCK = 5
    OFFSET = 6


def stream(seed: int, purpose: Purpose, index: int = 0) -> np.random.Generator:
    """The numbers that belong to one purpose of one request."""
    if not (0 <= seed <= MAX_SEED and 0 <= index < 1 << _INDEX_BITS):
        raise ValueError("a seed has 64 bits and an index 56, and neither has a sign")
    key = np.array([seed, purpose << _INDEX_BITS | index], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))
