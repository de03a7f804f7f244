"""What is one generated token, as the engine makes it and the links carry it?"""

from msgspec import Struct

from runtime.params import TokenId


class TokenLogprobs(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Natural-log probabilities before temperature and truncation, as the OpenAI API reports them.

    `top` holds (token id, logprob) pairs, best first.
    """

    chosen: float
    top: tuple[tuple[int, float], ...] = ()


class SampledToken(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    token_id: TokenId
    logprobs: TokenLogprobs | None = None
