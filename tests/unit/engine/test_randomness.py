"""Is the draw Philox, the same for ever, and uniform?"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]  # scipy ships no type information

from engine.randomness import philox4x64, uniform

MASK = (1 << 64) - 1
WORD = st.integers(0, MASK)


@pytest.mark.parametrize(
    ("word", "block"),
    [
        (0, (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B)),
        (MASK, (0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0)),
    ],
)
def test_known_answers_of_random123(word: int, block: tuple[int, ...]) -> None:
    assert philox4x64((word,) * 4, (word,) * 2) == block


@given(st.tuples(WORD, WORD, WORD, WORD), st.tuples(WORD, WORD))
def test_blocks_are_those_of_numpy(counter: tuple[int, int, int, int], key: tuple[int, int]) -> None:
    number = sum(word << (64 * place) for place, word in enumerate(counter))
    before = (number - 1) % (1 << 256)  # numpy counts up before it makes a block
    oracle = np.random.Philox(counter=before, key=key[0] | key[1] << 64)
    assert philox4x64(counter, key) == tuple(oracle.random_raw(4).tolist())


@pytest.mark.parametrize(
    ("seed", "index", "stream", "draw"),
    [
        (0, 0, 0, 0.08723912359911234),
        (0, 1, 0, 0.011546754286331562),
        (0, 0, 1, 0.9077098948652647),
        (1, 0, 0, 0.794901327418393),
        (-1, 0, 0, 0.9833383464769775),
        (-(1 << 63), 12345, 0, 0.29849229282640866),
        ((1 << 63) - 1, (1 << 20) - 1, 7, 0.2669769191316914),
    ],
)
def test_golden_draws(seed: int, index: int, stream: int, draw: float) -> None:
    """Transcripts of seeded requests depend on these numbers: they may never change."""
    assert uniform(seed, index, stream) == draw


@given(st.integers(-(1 << 63), (1 << 63) - 1), st.integers(0, 1 << 20), st.integers(0, 3))
def test_draws_stay_in_the_half_open_interval(seed: int, index: int, stream: int) -> None:
    draw = uniform(seed, index, stream)
    assert 0 <= draw < 1
    assert (draw * 2**53).is_integer()


def test_draws_are_uniform_and_independent_of_their_neighbours() -> None:
    draws = [uniform(-7, index) for index in range(4000)]
    others = [uniform(-6, index) for index in range(4000)]
    assert stats.kstest(draws, "uniform").pvalue > 1e-3
    assert abs(stats.pearsonr(draws[:-1], draws[1:]).statistic) < 0.06
    assert abs(stats.pearsonr(draws, others).statistic) < 0.06
