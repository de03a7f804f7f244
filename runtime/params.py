"""What may a request ask of generation, and how can generation end?

`SamplingParams` crosses every link and is read by the engine, so it lives below both. Its bounds are checked where
bytes become values (msgspec rejects NaN, infinities and integers beyond 64 bits against these bounds).
"""

from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct

MAX_TOKENS_LIMIT = 1 << 20
"""No model here generates more tokens than this in one request; the model's context is the real limit."""

TokenId = Annotated[int, Meta(ge=0, lt=1 << 31)]


MAX_GRAMMAR_CHARS = 1 << 18


class FinishReason(StrEnum):
    STOP = "stop"  # the model's end-of-sequence token, a stop token id or a stop string
    LENGTH = "length"  # max_tokens, or the model's context
    CANCELLED = "cancelled"


class SamplingParams(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the tokens of one request are chosen; names and meanings are those of the OpenAI API and of vLLM.

    Order of application: grammar mask, logit bias, `min_tokens` mask, repetition/presence/frequency penalties,
    temperature, top-k, top-p, min-p, draw. `temperature` 0 is greedy.
    """

    max_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS_LIMIT)] | None = (
        None  # None: as many as the context has room for
    )
    min_tokens: Annotated[int, Meta(ge=0, le=MAX_TOKENS_LIMIT)] = 0
    temperature: Annotated[float, Meta(ge=0.0, le=100.0)] = 1.0
    top_k: Annotated[int, Meta(ge=0, lt=1 << 31)] = 0  # 0: off
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0.0, le=10.0)] = 1.0
    presence_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] = 0.0
    frequency_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] = 0.0
    logit_bias: Annotated[dict[TokenId, Annotated[float, Meta(ge=-100.0, le=100.0)]], Meta(max_length=1024)] = {}
    seed: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None  # None: the coordinator draws one
    ignore_eos: bool = False
    stop: Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=256)], ...], Meta(max_length=16)] = ()
    stop_token_ids: Annotated[tuple[TokenId, ...], Meta(max_length=64)] = ()
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None  # None: off; k: the chosen token's and the k best
    grammar: Annotated[str, Meta(min_length=1, max_length=MAX_GRAMMAR_CHARS)] | None = (
        None  # what the text has to match, in Lark or in llguidance's JSON form; its end ends the request
    )
