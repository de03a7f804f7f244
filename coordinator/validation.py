"""Is this request one that the model could serve, and what exactly does it ask for?

Pure. Types and ranges are checked where bytes become values; this checks what depends on the model, and fills in what
the client left open. Every refusal names the parameter and says what to change.
"""

from collections.abc import Sequence

import msgspec

from coordinator.config import RequestLimits
from runtime.description import ModelInfo
from runtime.params import SamplingParams
from transport.messages.client import FailureCode, GenerateRequest

_NO_LIMITS = RequestLimits()


class InvalidRequest(Exception):
    """This one request cannot be served as it is."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        code: FailureCode = "invalid_request",
        *,
        limit: str | None = None,
    ) -> None:
        """`limit` names the bound of the server, not of the model, that was hit."""
        super().__init__(message)
        self.message = message
        self.param = param
        self.limit = limit
        self.code: FailureCode = code


def check_form(request: GenerateRequest, served_model: str) -> None:
    """Before tokenising: exactly one prompt, the right model."""
    given = [name for name in ("prompt", "prompt_token_ids", "messages") if getattr(request, name) is not None]
    if len(given) != 1:
        what = " and ".join(given) or "none of them"
        raise InvalidRequest(f"give exactly one of prompt, prompt_token_ids, messages; got {what}", "prompt")
    if request.messages is not None and not request.messages:
        raise InvalidRequest("messages is empty", "messages")
    if request.model is not None and request.model != served_model:
        raise InvalidRequest(
            f"the model {request.model!r} is not served here; this server serves {served_model!r}",
            "model",
            "model_not_found",
        )


def check_length(chars: int, max_token_chars: int, model: ModelInfo) -> None:
    """Before tokenising: a text this long cannot fit, however its tokens fall. Tokenising it would stall the loop."""
    longest = model.max_model_len * max_token_chars
    if chars > longest:
        raise InvalidRequest(
            f"the prompt has {chars} characters; the context of {model.max_model_len} tokens holds at most {longest}",
            "prompt",
        )


def resolve(
    prompt: Sequence[int],
    sampling: SamplingParams,
    model: ModelInfo,
    kv_tokens: int,
    fresh_seed: int,
    limits: RequestLimits = _NO_LIMITS,
) -> SamplingParams:
    """The parameters with `max_tokens` and `seed` filled in.

    Args:
        kv_tokens: KV tokens that the largest decode worker can hold; bounds an open `max_tokens`.
        fresh_seed: drawn by the caller, used when the client gave none.

    Raises:
        InvalidRequest: prompt and parameters do not fit the model or each other.
    """
    if not prompt:
        raise InvalidRequest("the prompt has no tokens; give at least one", "prompt")
    if limits.max_prompt_tokens is not None and len(prompt) > limits.max_prompt_tokens:
        message = f"the prompt has {len(prompt)} tokens; this server takes at most {limits.max_prompt_tokens}"
        raise InvalidRequest(message, "prompt", limit="prompt_tokens")
    most = limits.max_output_tokens
    if most is not None and (sampling.max_tokens or 0) > most:
        message = f"max_tokens is {sampling.max_tokens}; this server gives at most {most}"
        raise InvalidRequest(message, "max_tokens", limit="output_tokens")
    room = model.max_model_len - len(prompt)
    if room < 1:
        raise InvalidRequest(
            f"the prompt has {len(prompt)} tokens, but the context of this model is {model.max_model_len} and at least "
            "one token has to be generated: shorten the prompt",
            "prompt",
        )
    unknown = next((token for token in prompt if token >= model.vocab_size), None)  # only now: it has a bounded length
    if unknown is not None:
        raise InvalidRequest(
            f"token id {unknown} is outside the vocabulary of {model.vocab_size} tokens", "prompt_token_ids"
        )
    if sampling.max_tokens is not None and sampling.max_tokens > room:
        raise InvalidRequest(
            f"max_tokens is {sampling.max_tokens}, but a prompt of {len(prompt)} tokens leaves room for {room} in the "
            f"context of {model.max_model_len}: lower max_tokens or shorten the prompt",
            "max_tokens",
        )
    open_limit = max(1, min(room, kv_tokens - len(prompt) + 1, room if most is None else most))
    max_tokens = sampling.max_tokens if sampling.max_tokens is not None else open_limit
    if sampling.min_tokens > max_tokens:
        raise InvalidRequest(f"min_tokens ({sampling.min_tokens}) exceeds max_tokens ({max_tokens})", "min_tokens")
    _check_ids(sampling, model.vocab_size)
    if sampling.grammar is not None:
        _check_end_of_grammar(sampling, model)
    seed = sampling.seed if sampling.seed is not None else fresh_seed
    return msgspec.structs.replace(sampling, max_tokens=max_tokens, seed=seed)


def _check_ids(sampling: SamplingParams, vocab_size: int) -> None:
    for param, ids in (("logit_bias", sampling.logit_bias), ("stop_token_ids", sampling.stop_token_ids)):
        unknown = next((token for token in ids if token >= vocab_size), None)
        if unknown is not None:
            raise InvalidRequest(f"{param}: token id {unknown} is outside the vocabulary of {vocab_size} tokens", param)


def _check_end_of_grammar(sampling: SamplingParams, model: ModelInfo) -> None:
    """Behind the end of a grammar only the end of sequence is possible: it must be possible, and end the request."""
    if not model.eos_token_ids:
        raise InvalidRequest("this model has no end-of-sequence token, so no grammar can end: leave it out", "grammar")
    for param in ("min_tokens", "ignore_eos"):
        if getattr(sampling, param):
            raise InvalidRequest(
                f"{param} and a grammar contradict each other: the grammar's end ends the answer", param
            )
