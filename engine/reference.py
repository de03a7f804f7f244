"""What would one process without pages, batches or hand-offs answer?

Slow and obvious: the model's own forward, its own cache, one request. The oracle of the tests (design invariant 5) and
the "same prefill in one process" of the benchmarks. Takes a model as `engine.loading.load` returns it, not one that
paged attention was installed in.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from engine.port import Matcher, SampleSpec
from engine.sampling import sample
from runtime.params import SamplingParams


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    prompt: Sequence[int],
    params: SamplingParams,
    max_tokens: int,
    eos_token_ids: tuple[int, ...] = (),
    matcher: Matcher | None = None,
) -> list[int]:
    """Up to `max_tokens` tokens, chosen by `engine.sampling`; ends after one of `eos_token_ids`, which is included."""
    cache = DynamicCache(config=model.config)
    output: list[int] = []
    fed = list(prompt)
    while len(output) < max_tokens and (not output or output[-1] not in eos_token_ids):
        logits = forward(model, fed, cache)
        spec = SampleSpec(params, len(output), prompt, tuple(output))
        masks = {0: matcher.allowed(output)} if matcher is not None else {}
        fed = [sample(logits, [spec], eos_token_ids, masks)[0].token_id]
        output += fed
    return output


def generate_greedy(model: PreTrainedModel, prompt: Sequence[int], max_tokens: int) -> list[int]:
    """Exactly `max_tokens` tokens by transformers' own `generate`, end of sequence ignored."""
    ids = torch.tensor([prompt], device=model.device)
    settings = {"max_new_tokens": max_tokens, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    model_generate: Any = model.generate  # of the GenerationMixin that the class of `model` adds
    output = model_generate(ids, attention_mask=torch.ones_like(ids), **settings)
    return [int(token) for token in output[0, len(prompt) :]]


@torch.inference_mode()
def forward(model: PreTrainedModel, token_ids: Sequence[int], cache: DynamicCache) -> Tensor:
    """Feed tokens behind those in `cache`; the logits after the last one, [1, vocab]."""
    ids = torch.tensor([token_ids], device=model.device)
    logits: Tensor = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    return logits[:, -1]
