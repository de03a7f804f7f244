"""Does a cell on this device answer what transformers' `generate` answers, with tiny models of other architectures?"""

import asyncio
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from engine.loading import quiet_transformers
from engine.reference import generate_greedy
from launch.client import StreamingClient
from launch.config import CellOptions
from runtime.params import SamplingParams
from tests.support import tiny_models, tiny_tokenizer
from tests.support.processes import all_pages_back, cell

PAGE, CHUNK, NEW_TOKENS = 8, 24, 16
LENGTHS = [1, PAGE - 1, PAGE, PAGE + 1, CHUNK - 1, CHUNK, CHUNK + 1, 100, 200]


def split_equals_generate(family: str, directory: Path, device: str = "cpu") -> None:
    """One prefill and one decode worker on `device`, in float32, against one process on the CPU; one prompt at a time,
    and all together.

    Raises:
        AssertionError: they differ in a token, or pages are still held at the end.
    """
    config = tiny_models.CONFIGS[family]()
    tiny_models.save(config, directory)
    tiny_tokenizer.byte_level().save(str(directory / "tokenizer.json"))
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(3, tiny_models.VOCAB_SIZE, (n,), generator=generator).tolist() for n in LENGTHS]
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    if capped:
        model.set_attn_implementation("eager")  # 5.17 takes sdpa, which leaves the soft-cap out
    wanted = [generate_greedy(model, prompt, NEW_TOKENS) for prompt in prompts]
    options = CellOptions(
        model_dir=str(directory),
        model_name=family,
        devices=(device,),
        dtype="float32",
        page_tokens=PAGE,
        chunk_tokens=CHUNK,
        decode_kv_tokens=4096,
    )
    sampling = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True)

    async def run() -> None:
        async with cell(options) as running, StreamingClient(running.endpoint) as client:
            for prompt, want in zip(prompts, wanted, strict=True):
                assert (await client.generate(prompt_token_ids=prompt, sampling=sampling).finish()).token_ids == want
            together = [client.generate(prompt_token_ids=prompt, sampling=sampling).finish() for prompt in prompts]
            assert [done.token_ids for done in await asyncio.gather(*together)] == wanted
            await all_pages_back(client)

    asyncio.run(run())
