"""What does a client that never reads cost the others?"""

import asyncio
import os
from pathlib import Path

import msgpack  # type: ignore[import-untyped]  # it has no types
import pytest
import zmq

from engine.fake import fake_tokens
from launch.client import StreamingClient
from runtime.params import SamplingParams
from tests.support.processes import all_pages_back, cell, mock_options

pytestmark = pytest.mark.e2e

STALL_S = 3.0
MOST_GROWTH_BYTES = 64 << 20


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_a_client_that_never_reads_is_dropped_and_delays_nobody() -> None:
    """100 streams of 3000 tokens into a socket that takes one message; another client's tokens stay exact."""

    async def run() -> None:
        options = mock_options(decode_kv_tokens=400_000, max_batch=128, client_stall_s=STALL_S)
        with zmq.Context() as context, context.socket(zmq.DEALER) as deaf:
            deaf.setsockopt(zmq.RCVHWM, 1)
            deaf.setsockopt(zmq.RCVBUF, 4096)
            deaf.setsockopt(zmq.LINGER, 0)
            async with cell(options) as running, StreamingClient(running.endpoint) as client:
                deaf.connect(running.endpoint)
                deaf.send(msgpack.packb({"type": "ClientHello", "protocol": 1}))
                coordinator = running.supervisor.pids()["coordinator"]
                before = resident_bytes(coordinator)
                request = {"prompt_token_ids": [7] * 20, "sampling": {"max_tokens": 3000, "ignore_eos": True}}
                for i in range(100):
                    deaf.send(msgpack.packb({"type": "Submit", "id": f"r{i}", "request": request}))
                largest = 0
                sampling = SamplingParams(max_tokens=50, ignore_eos=True)
                for i in range(1000):
                    deaf.send(msgpack.packb({"type": "Ping"}))  # it lives, it only never reads
                    prompt = [i % 256] * 5
                    done = await client.generate(prompt_token_ids=prompt, sampling=sampling).finish()
                    assert done.token_ids == fake_tokens(prompt, 50)
                    largest = max(largest, resident_bytes(coordinator))
                    if i > 5 and (await client.status()).in_flight == 0:
                        break
                await all_pages_back(client)
                assert largest - before < MOST_GROWTH_BYTES

    asyncio.run(run())
