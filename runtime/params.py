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
MaxTokens = Annotated[int, Meta(ge=1, le=MAX_TOKENS_LIMIT)]
MinTokens = Annotated[int, Meta(ge=0, le=MAX_TOKENS_LIMIT)]
Temperature = Annotated[float, Meta(ge=0.0, le=100.0)]
TopK = Annotated[int, Meta(ge=0, lt=1 << 31)]
TopP = Annotated[float, Meta(gt=0.0, le=1.0)]
MinP = Annotated[float, Meta(ge=0.0, le=1.0)]
RepetitionPenalty = Annotated[float, Meta(gt=0.0, le=10.0)]
Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
LogitBias = Annotated[dict[TokenId, Annotated[float, Meta(ge=-100.0, le=100.0)]], Meta(max_length=1024)]
Seed = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
StopString = Annotated[str, Meta(min_length=1, max_length=256)]
MAX_STOP_STRINGS = 16
StopTokenIds = Annotated[tuple[TokenId, ...], Meta(max_length=64)]
TopLogprobs = Annotated[int, Meta(ge=0, le=20)]
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

    max_tokens: MaxTokens | None = None  # None: as many as the context has room for
    min_tokens: MinTokens = 0
    temperature: Temperature = 1.0
    top_k: TopK = 0  # 0: off
    top_p: TopP = 1.0
    min_p: MinP = 0.0
    repetition_penalty: RepetitionPenalty = 1.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    logit_bias: LogitBias = {}
    seed: Seed | None = None  # None: the coordinator draws one
    ignore_eos: bool = False
    stop: Annotated[tuple[StopString, ...], Meta(max_length=MAX_STOP_STRINGS)] = ()
    stop_token_ids: StopTokenIds = ()
    logprobs: TopLogprobs | None = None  # None: off; k: the chosen token's and the k best
    grammar: Annotated[str, Meta(min_length=1, max_length=MAX_GRAMMAR_CHARS)] | None = (
        None  # what the text has to match, in Lark or in llguidance's JSON form; its end ends the request
    )

    @property
    def reads_output(self) -> bool:
        """Whether the choice of a token reads those before it, other than through the model: it waits for all of them
        on the host, then."""
        return (
            self.grammar is not None
            or self.repetition_penalty != 1
            or bool(self.presence_penalty or self.frequency_penalty)
        )
