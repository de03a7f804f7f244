"""Does the timeline of a real cell show what its requests went through, while others are served?"""

import asyncio
import json

import msgspec
import pytest

from engine.fake import fake_tokens
from launch.client import StreamingClient
from launch.trace import fetch_trace
from runtime.params import SamplingParams
from tests.support.processes import cell, mock_options
from tests.support.trace import check_trace

pytestmark = pytest.mark.e2e


def test_every_request_is_followed_from_its_prompt_to_its_first_decode_step() -> None:
    async def run() -> None:
        options = mock_options(prefill=2, chunk_tokens=64, fake_step_s=0.01, fake_kv_bytes_per_token=4096)
        prompts = [[(7 * i + j) % 256 for j in range(30 + 25 * i)] for i in range(12)]
        async with cell(options) as running, StreamingClient(running.endpoint) as client:
            sampling = SamplingParams(max_tokens=10, ignore_eos=True)
            streams = [client.generate(prompt_token_ids=prompt, sampling=sampling) for prompt in prompts]
            done = await asyncio.gather(*(stream.finish() for stream in streams))
            long = client.generate(prompt_token_ids=[1], sampling=SamplingParams(max_tokens=150, ignore_eos=True))
            await anext(long)
            document = await fetch_trace(client, 60.0)
            assert (await long.finish()).token_ids == fake_tokens([1], 150)
        trace = json.loads(msgspec.json.encode(document))
        arrows = {arrow.id: arrow.stops for arrow in check_trace(trace)}
        assert document.otherData.missing == ()
        for i, answer in enumerate(done):
            assert answer.ledger is not None
            prefill, decode = answer.ledger.prefill_worker, answer.ledger.decode_worker
            chunk, transfer, step = arrows[f"0x{i:x}"]
            assert (chunk[0], transfer[0], step[0]) == (prefill, prefill, decode)
        of = {e["args"]["name"]: e["pid"] for e in trace["traceEvents"] if e["name"] == "process_name"}
        computed: dict[int, int] = {}
        for event in trace["traceEvents"]:
            if event.get("cat") == "chunks":
                computed[event["args"]["request"]] = computed.get(event["args"]["request"], 0) + event["args"]["tokens"]
        assert [computed[i] for i in range(12)] == [len(prompt) for prompt in prompts]
        moved = {e["args"]["request"]: e["args"] for e in trace["traceEvents"] if e.get("cat") == "transfers"}
        assert all(moved[i]["bytes"] == -(-len(prompts[i]) // 16) * 16 * 4096 for i in range(12))
        steps = [e for e in trace["traceEvents"] if e.get("cat") == "steps" and e["ph"] == "X"]
        assert sum(e["args"]["decoding"] for e in steps if e["pid"] == of["decode-0"]) >= 12 * 9
        phases = {e["name"] for e in trace["traceEvents"] if e["ph"] == "b"}
        assert {"prefilling", "handing_off", "decoding", "request 11"} <= phases
        counters = {(e["pid"], e["name"]) for e in trace["traceEvents"] if e["ph"] == "C"}
        assert (of["coordinator"], "unspent pages of decode-0") in counters
        assert (of["prefill-1"], "free pages") in counters

    asyncio.run(run())
