"""From which token ids may random prompts be made?

From ordinary ones: special tokens end answers or change turns. The longest run of ids without a special one is taken.
"""

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import msgspec
from msgspec import Struct
from tokenizers import Tokenizer

BYTES = (32, 127)
"""Of the mock engine, whose tokens are bytes: what can be printed."""

UNKNOWN = (1000, 30_000)
"""In every vocabulary of common models, and beyond where their special tokens usually are."""


class _Config(Struct, frozen=True):
    vocab_size: int | None = None


def of_model(directory: Path) -> tuple[int, int]:
    """The first id and the one after the last.

    Raises:
        ValueError: the directory has no tokenizer.
    """
    file = directory / "tokenizer.json"
    if not file.is_file():
        raise ValueError(f"{directory} holds no tokenizer.json")
    tokenizer = Tokenizer.from_file(str(file))
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    config = directory / "config.json"
    if config.is_file():
        size = min(size, msgspec.json.decode(config.read_bytes(), type=_Config).vocab_size or size)
    return longest_run(size, tokenizer.get_added_tokens_decoder().keys())


def longest_run(size: int, special: Iterable[int]) -> tuple[int, int]:
    """Pure. Of the ids 0 to `size` - 1 without the special ones."""
    edges = [-1, *sorted({number for number in special if 0 <= number < size}), size]
    first, last = max(pairwise(edges), key=lambda run: run[1] - run[0])
    return first + 1, last
