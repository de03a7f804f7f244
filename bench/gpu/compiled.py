"""How fast does transformers decode with a static cache and a compiled forward?

`model.generate` with a `StaticCache`, for which it compiles the decode step itself.
"""

from typing import Any

import torch
from transformers import StaticCache

from bench.gpu.others import CONTEXT, measure, random_model
from bench.gpu.parts import Settings, Tell

_NAME = "transformers, static cache, compiled"
_NOTE = "generate's own loop around a compiled step; every row has the same length"
_CACHE_TOKENS = CONTEXT + 128
_ROWS = (1, 64)  # each compiles anew, and takes a minute for that


def run(settings: Settings, tell: Tell) -> None:
    model: Any = random_model(settings)
    for rows in _ROWS:
        torch.compiler.reset()  # or the second number of rows would be compiled for any number
        cache: Any = StaticCache(config=model.config, max_cache_len=_CACHE_TOKENS)

        def generate(prompts: list[list[int]], tokens: int, cache: Any = cache) -> int:  # noqa: ANN401 - untyped there
            cache.reset()
            ids = torch.tensor(prompts, device=settings.device)
            answer = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                past_key_values=cache,
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
            return int(answer.shape[0] * (answer.shape[1] - ids.shape[1]))

        tell(measure(_NAME, _NOTE, settings, rows, generate))
