"""Which token ids does a prompt of the workload consist of?

Pure. Drawn at random from a range of the vocabulary, one stream per request or per block of a trace, so a prompt can be
made alone and again. Random draws alone could repeat a short prompt; so the first ids spell the number of the request,
or of the block, in base of the vocabulary: two prompts are equal only where a trace says so, or where there are more of
them than a vocabulary has words of that length.
"""

from typing import Annotated

from msgspec import Meta, Struct

from launch.evaluation.draws import MAX_SEED, Purpose, stream
from launch.evaluation.workload import Request

_NUMBERS = 1 << 32  # how many requests or blocks can be told apart, in as many ids as that takes


class Content(Struct, frozen=True, kw_only=True):
    """Token ids from `low` to `high - 1`; leave special tokens outside."""

    seed: Annotated[int, Meta(ge=0, le=MAX_SEED)]
    low: Annotated[int, Meta(ge=0, lt=1 << 31)]
    high: Annotated[int, Meta(ge=2, le=1 << 31)]

    def __post_init__(self) -> None:
        if self.high - self.low < 2:
            raise ValueError(f"token ids from {self.low} to {self.high - 1} cannot tell prompts apart")


def prompt_ids(request: Request, content: Content) -> tuple[int, ...]:
    """
    Raises:
        ValueError: the request's prompt is text.
    """
    if request.prompt_tokens is None:
        raise ValueError(f"request {request.index} brings its prompt as text")
    if not request.blocks or request.block_tokens is None:
        return _ids(content, Purpose.CONTENT, request.index, request.prompt_tokens)
    ids: list[int] = []
    for block in request.blocks:
        ids += _ids(content, Purpose.BLOCK, block, request.block_tokens)
    if len(ids) < request.prompt_tokens:
        raise ValueError(f"request {request.index} has blocks for {len(ids)} of {request.prompt_tokens} tokens")
    return tuple(ids[: request.prompt_tokens])


def _ids(content: Content, purpose: Purpose, number: int, count: int) -> tuple[int, ...]:
    drawn = stream(content.seed, purpose, number).integers(content.low, content.high, size=count).tolist()
    spelled = _spelled(content, purpose, number)[:count]
    return (*spelled, *drawn[len(spelled) :])


def _spelled(content: Content, purpose: Purpose, number: int) -> list[int]:
    """The lowest digit first: it is the one that differs in a prompt too short for all of them.

    The offsets only keep prompts from beginning with the same few ids.
    """
    base = content.high - content.low
    offsets = stream(content.seed, Purpose.OFFSET, purpose).integers(base, size=_digits(base)).tolist()
    spelled = []
    for offset in offsets:
        number, digit = divmod(number, base)
        spelled.append(content.low + (digit + offset) % base)
    return spelled


def _digits(base: int) -> int:
    digits = 1
    while base**digits < _NUMBERS:
        digits += 1
    return digits
