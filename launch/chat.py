"""How does one talk to a cell over several turns?

A loop at the terminal. The connection is made per answer, so a cell may be restarted between two turns.
"""

import asyncio
import readline  # noqa: F401 - gives input() line editing and history

from launch.ask import ask, show_stats
from launch.client import Completion, RequestFailed, StreamingClient
from runtime.params import FinishReason, SamplingParams


def chat_loop(endpoint: str, sampling: SamplingParams, *, system: str | None, stats: bool) -> None:
    """Until Ctrl-D.

    Raises:
        launch.client.ServerUnreachable: the cell does not answer.
    """
    history: list[tuple[str, str]] = [("system", system)] if system is not None else []
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()  # noqa: T201 - the terminal is the output
            return
        except KeyboardInterrupt:
            print()  # noqa: T201 - a fresh prompt, as shells do
            continue
        if not line:
            continue
        history.append(("user", line))
        try:
            completion = asyncio.run(_answer(endpoint, history, sampling))
        except RequestFailed as error:
            print(f"error: {error}")  # noqa: T201 - the conversation goes on
            history.pop()
            continue
        history.append(("assistant", completion.text))
        if completion.finish_reason is FinishReason.CANCELLED:
            print("[stopped]")  # noqa: T201 - likewise
        if stats:
            show_stats(completion)


async def _answer(endpoint: str, history: list[tuple[str, str]], sampling: SamplingParams) -> Completion:
    async with StreamingClient(endpoint) as client:
        return await ask(client, history, sampling)
