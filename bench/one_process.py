"""How long does the prefill of a prompt take without a hand-off?

A process of its own, started by `bench.handoff`: the same engine as a prefill worker's, with the same chunks, threads
and cores, and nothing around it: no messages, digests or transfers. Loads once, then answers prompt after prompt.
"""

import time
from collections.abc import Sequence

from bench.child import Channel, serve
from bench.handoff import Answer, Load, Loaded, Prompt
from engine.open import open_engine
from engine.port import EnginePort, Row, RowResult, SampleSpec
from engine.thread import EngineThread
from runtime.params import SamplingParams
from runtime.tokens import SampledToken


def first_token(engine: EnginePort, prompt: Sequence[int], chunk_tokens: int) -> int:
    """Greedy token 1 after `prompt`, computed in chunks into the first pages of the pool.

    Raises:
        ValueError: `prompt` is empty.
    """
    pages = range(engine.layout.pages_for(len(prompt)))
    spec = SampleSpec(SamplingParams(temperature=0.0), 0, prompt, ())
    token: RowResult = None
    for start in range(0, len(prompt), chunk_tokens):
        chunk = prompt[start : start + chunk_tokens]
        is_last = start + len(chunk) == len(prompt)
        (token,) = engine.forward([Row(chunk, start, pages, spec if is_last else None)])
    if not isinstance(token, SampledToken):
        raise ValueError("nothing follows an empty prompt")  # noqa: TRY004 - the prompt is at fault, not a type
    return token.token_id


async def _main(channel: Channel) -> None:
    load = await channel.receive(Load)
    thread = EngineThread()  # as in a worker: torch's thread pools belong to the thread that uses them
    engine = await open_engine(load.engine, thread, lambda _stage, _fraction: None)
    channel.send(Loaded())
    while True:
        prompt = await channel.receive(Prompt)
        start = time.perf_counter()
        token_id = await thread.run(first_token, engine, prompt.token_ids, load.chunk_tokens)
        channel.send(Answer(token_id=token_id, seconds=time.perf_counter() - start))


if __name__ == "__main__":
    serve(_main)
