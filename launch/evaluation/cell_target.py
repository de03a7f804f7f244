"""How is a cell of our own measured?

Over ZeroMQ, as `launch.client` speaks it: one message per token, stamped when the socket hands it over, and the
coordinator's ledger with the last one.
"""

from collections.abc import Sequence

import msgspec

from launch.client import RequestFailed, ServerUnreachable, StreamingClient
from launch.evaluation.targets import Reply
from runtime.clock import Clock
from runtime.params import SamplingParams
from transport.messages.client import GenerateRequest

_TURNED_AWAY = frozenset({"overloaded", "draining", "loading"})


class CellTarget:
    def __init__(self, client: StreamingClient, clock: Clock) -> None:
        """
        Args:
            client: connected, and on the same clock.
        """
        self._client = client
        self._clock = clock

    def encode(self, prompt: str | Sequence[int], output_tokens: int) -> bytes:
        text = isinstance(prompt, str)
        return msgspec.msgpack.encode(
            GenerateRequest(
                prompt=prompt if isinstance(prompt, str) else None,
                prompt_token_ids=None if text else tuple(map(int, prompt)),
                sampling=SamplingParams(temperature=0.0, max_tokens=output_tokens, ignore_eos=True),
            )
        )

    async def ask(self, request: bytes, reply: Reply) -> None:
        sent_at = reply.sent_at = self._clock.now()
        try:
            async with self._client.submit_raw(request) as generation:
                async for token in generation:
                    reply.token_at.append(sent_at + token.since_send_s)
            completion = generation.completion
            reply.prompt_tokens, reply.ledger = completion.prompt_tokens, completion.ledger
            reply.end(sent_at + completion.total_s)
        except RequestFailed as error:
            reply.end(self._clock.now(), f"{error.code}: {error.message}", rejected=error.code in _TURNED_AWAY)
        except ServerUnreachable as error:
            reply.end(self._clock.now(), f"connection: {error}")

    def notes(self) -> tuple[str, ...]:
        return ()
