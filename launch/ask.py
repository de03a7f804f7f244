"""How does one prompt become a streamed answer on a terminal?

Shared by `kvrelay generate`, `kvrelay chat` and the demo. Answers go to stdout, everything else to stderr.
"""

import asyncio
import signal
from collections.abc import Sequence

from rich.console import Console

from launch.client import Completion, StreamingClient
from launch.stats import print_stats
from runtime.params import SamplingParams


async def ask(
    client: StreamingClient,
    messages: Sequence[tuple[str, str]] | None,
    sampling: SamplingParams,
    *,
    prompt: str | None = None,
) -> Completion:
    """Stream one answer to stdout; Ctrl-C stops the answer, not the program.

    Raises:
        launch.client.RequestFailed, launch.client.ServerUnreachable: as the server says.
    """
    loop = asyncio.get_running_loop()
    generation = client.generate(prompt, messages=messages, sampling=sampling)
    loop.add_signal_handler(signal.SIGINT, generation.cancel)
    try:
        shown = 0
        async for token in generation:
            print(token.text, end="", flush=True)  # noqa: T201 - the answer is the program's output
            shown += len(token.text)
        print(generation.completion.text[shown:], flush=True)  # noqa: T201 - what was held back until the end
    finally:
        loop.remove_signal_handler(signal.SIGINT)
    return generation.completion


def show_stats(completion: Completion) -> None:
    print_stats(Console(stderr=True, emoji=False), completion)
