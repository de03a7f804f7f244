"""How fast does transformers decode with its continuous batching?

`model.generate_batch`: its own scheduler and paged attention. With flash-attn that is a kernel in a CUDA graph; without
it torch's attention, with one mask over the keys of all sequences: a step costs their number squared.
"""

from typing import Any

from transformers import GenerationConfig
from transformers import utils as transformers_utils

from bench.gpu.others import ROWS, measure, random_model
from bench.gpu.parts import Settings, Tell

_NAME = "transformers, continuous batching"
_NOTE = "its scheduler, paged attention and sampling; all prompts come at once"


def run(settings: Settings, tell: Tell) -> None:
    model: Any = random_model(settings)
    utils: Any = transformers_utils  # not annotated
    if not (utils.is_flash_attn_3_available() or utils.is_flash_attn_2_available()):
        tell(
            note="without flash-attention: torch's attention over the keys of all sequences at once, and no CUDA graphs"
        )
    new_config: Any = GenerationConfig  # transformers does not annotate it

    def generate(prompts: list[list[int]], tokens: int) -> int:
        config = new_config(max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
        answers = model.generate_batch(inputs=prompts, generation_config=config)
        return sum(len(answer.generated_tokens) for answer in answers.values())

    for rows in ROWS:
        tell(measure(_NAME, _NOTE, settings, rows, generate))
