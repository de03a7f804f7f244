"""When does a request end, as far as its tokens tell?

Pure. Called by the workers after each token and by the coordinator for a request's worst case. Stop strings are the
coordinator's business: it owns the text.
"""

from runtime.params import FinishReason, SamplingParams


def token_limit(params: SamplingParams, prompt_tokens: int, max_model_len: int) -> int:
    """How many tokens the request may produce: `max_tokens`, or less where the context has no room for more.

    0 means that the prompt leaves no room at all: such a request is to be refused.
    """
    room = max(max_model_len - prompt_tokens, 0)
    return room if params.max_tokens is None else min(params.max_tokens, room)


def finish_reason(
    token_id: int,
    index: int,
    params: SamplingParams,
    eos_token_ids: tuple[int, ...],
    prompt_tokens: int,
    max_model_len: int,
) -> FinishReason | None:
    """Why the request ends with output token number `index` (from 0), or None when it goes on.

    A stopping token that is also the last one allowed counts as STOP. Before `min_tokens` tokens none of them stops;
    `engine.sampling` makes them impossible there. `max_model_len` is prompt and output tokens together.
    """
    stops = token_id in params.stop_token_ids or (token_id in eos_token_ids and not params.ignore_eos)
    if stops and index >= params.min_tokens:
        return FinishReason.STOP
    if index + 1 >= token_limit(params, prompt_tokens, max_model_len):
        return FinishReason.LENGTH
    return None
