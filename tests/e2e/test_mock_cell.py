"""Does the whole path work with real processes, real UCX and an engine whose answers are known?"""

import asyncio

import msgpack  # type: ignore[import-untyped]  # the other MessagePack library: it sends what ours refuses to build
import pytest

from engine.fake import fake_tokens
from launch.client import RequestFailed, ServerUnreachable, StreamingClient
from launch.evaluation.breakdown import of_ledger
from launch.explain import choose, newest_answers, of_cell
from runtime.params import FinishReason, SamplingParams
from tests.support.processes import all_pages_back, cell, mock_options

pytestmark = pytest.mark.e2e


def params(tokens: int, **changes: object) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, ignore_eos=True, **changes)  # type: ignore[arg-type]  # a test's changes


@pytest.mark.parametrize(("prefill", "decode"), [(1, 1), (2, 2), (1, 3)])
def test_every_answer_is_the_computed_one(prefill: int, decode: int) -> None:
    """Prompts around page and chunk borders, alone and 32 at once."""

    async def run() -> None:
        options = mock_options(prefill=prefill, decode=decode, chunk_tokens=64, fake_kv_bytes_per_token=4096)
        prompts = [[(7 * i + j) % 256 for j in range(n)] for i, n in enumerate([1, 15, 16, 17, 63, 64, 65, 200, 1000])]
        async with cell(options) as running, StreamingClient(running.endpoint) as client:
            for prompt in prompts:
                done = await client.generate(prompt_token_ids=prompt, sampling=params(20)).finish()
                assert done.token_ids == fake_tokens(prompt, 20)
                assert done.finish_reason is FinishReason.LENGTH
            many = [client.generate(prompt_token_ids=prompts[i % 9], sampling=params(5 + i)) for i in range(32)]
            for i, done in enumerate(await asyncio.gather(*(generation.finish() for generation in many))):
                assert done.token_ids == fake_tokens(prompts[i % 9], 5 + i)
            await all_pages_back(client)

    asyncio.run(run())


def test_the_ledger_adds_up() -> None:
    async def run() -> None:
        options = mock_options(fake_step_s=0.005, fake_token_s=0.0002, chunk_tokens=64)
        async with cell(options) as running, StreamingClient(running.endpoint) as client:
            done = await client.generate(prompt_token_ids=[1] * 300, sampling=params(10)).finish()
            ledger = done.ledger
            assert ledger is not None
            assert ledger.prefill is not None
            assert ledger.decode is not None
            assert ledger.prefill.chunks == 5
            assert ledger.prefill.compute_s >= 300 * 0.0002
            assert ledger.prefill.transfer_bytes == 19 * 16 * 1024
            assert ledger.decode.steps == 9
            assert ledger.decode.decode_s >= 8 * 0.005
            assert 0 < ledger.first_token_s <= done.ttft_s
            assert ledger.total_s <= done.total_s
            assert ledger.first_token_s < ledger.total_s

    asyncio.run(run())


def test_the_parts_of_a_request_leave_little_to_nobody_and_can_be_asked_for() -> None:
    """The residual is what messages wait for a core, four times a request: well below a millisecond where cores are
    free. Here other tests have them, so the bound is wide, and only half of the requests have to keep it."""

    async def run() -> None:
        options = mock_options(fake_step_s=0.02, fake_token_s=0.0002)
        async with cell(options) as running, StreamingClient(running.endpoint) as client:
            found = []
            for tokens in (1, 2, *[8] * 6):
                done = await client.generate(prompt_token_ids=[1] * 200, sampling=params(tokens)).finish()
                assert done.ledger is not None
                parts = of_ledger(done.ledger, tokens, sum(done.gaps_s))
                assert parts is not None
                assert all(part.seconds >= 0 for part in parts.parts)
                assert parts.residual_s == pytest.approx(sum(place.seconds for place in parts.places))
                found.append(parts)
            stopped = await client.generate(
                "ab", sampling=params(20, stop=(chr(fake_tokens(list(b"ab"), 3)[2]),))
            ).finish()
            assert stopped.finish_reason is FinishReason.STOP
            assert stopped.ledger is not None
            assert stopped.ledger.decode is not None, "the last word waits for the numbers"
            close = [parts for parts in found if abs(parts.residual_s) <= max(0.02, 0.1 * parts.e2e_s)]
            assert len(close) >= len(found) / 2, found
            told = of_cell(await newest_answers(client))
            assert [one.tokens for one in told] == [1, 2, *[8] * 6, len(stopped.token_ids)]
            assert choose(told, "slowest").tokens == 8
            assert choose(told, told[0].id).number == 0

    asyncio.run(run())


def test_cancelling_at_every_moment_gives_every_page_back() -> None:
    async def run() -> None:
        options = mock_options(fake_step_s=0.003, fake_token_s=0.0001, chunk_tokens=32, decode_kv_tokens=4096)
        async with cell(options) as running, StreamingClient(running.endpoint) as client:
            for delay_ms in [0, 1, 2, 5, 10, 20, 40, 60, 80, 120]:
                generation = client.generate(prompt_token_ids=[3] * 400, sampling=params(200))
                await asyncio.sleep(delay_ms / 1000)
                generation.cancel()
                done = await generation.finish()
                assert done.finish_reason is FinishReason.CANCELLED
                assert done.token_ids == fake_tokens([3] * 400, 200)[: len(done.token_ids)]
            await all_pages_back(client)
            done = await client.generate(prompt_token_ids=[5], sampling=params(3)).finish()
            assert done.token_ids == fake_tokens([5], 3)

    asyncio.run(run())


def test_an_abort_storm_leaves_nothing_behind() -> None:
    """300 long prompts, all cancelled at once, over and over: what wedged another system for good."""

    async def run() -> None:
        options = mock_options(fake_step_s=0.001, chunk_tokens=256, decode_kv_tokens=8192)
        async with cell(options) as running, StreamingClient(running.endpoint) as client:
            for _ in range(5):
                storm = [client.generate(prompt_token_ids=[9] * 900, sampling=params(50)) for _ in range(300)]
                await asyncio.sleep(0.3)
                for generation in storm:
                    generation.cancel()
                await asyncio.gather(*(generation.finish() for generation in storm))
            await all_pages_back(client)
            done = await client.generate(prompt_token_ids=[1, 2], sampling=params(4)).finish()
            assert done.token_ids == fake_tokens([1, 2], 4)

    asyncio.run(run())


def test_a_client_that_vanishes_gives_its_pages_back() -> None:
    async def run() -> None:
        options = mock_options(fake_step_s=0.01)
        async with cell(options) as running, StreamingClient(running.endpoint) as watcher:
            gone = StreamingClient(running.endpoint)
            await gone.__aenter__()
            streams = [gone.generate(prompt_token_ids=[1] * 50, sampling=params(4000)) for _ in range(4)]
            await streams[0].__anext__()
            assert (await watcher.status()).in_flight == 4
            gone.abandon()  # no Cancel, no goodbye: as if the process had been killed
            await all_pages_back(watcher)

    asyncio.run(run())


BAD_REQUESTS = [
    ({"prompt_token_ids": []}, "no tokens"),
    ({"prompt": ""}, "no tokens"),
    ({"prompt_token_ids": [1] * 5000}, "context"),
    ({"prompt_token_ids": [1] * 3000, "sampling": {"max_tokens": 1000}}, "pool"),
    ({"prompt": "x" * 1_000_000}, "characters"),
    ({"prompt": "x", "messages": [{"role": "user", "content": "y"}]}, "exactly one"),
    ({}, "exactly one"),
    ({"messages": []}, "empty"),
    ({"messages": [{"role": "wizard", "content": "y"}]}, "role"),
    ({"prompt": "x", "model": "gpt-17"}, "not served"),
    ({"prompt_token_ids": [300]}, "vocabulary"),
    ({"prompt_token_ids": [-1]}, "prompt_token_ids"),
    ({"prompt_token_ids": [2**31]}, "prompt_token_ids"),
    ({"prompt": "x", "sampling": {"temperature": float("nan")}}, "temperature"),
    ({"prompt": "x", "sampling": {"temperature": float("inf")}}, "temperature"),
    ({"prompt": "x", "sampling": {"temperature": -1.0}}, "temperature"),
    ({"prompt": "x", "sampling": {"top_p": 0.0}}, "top_p"),
    ({"prompt": "x", "sampling": {"top_p": 2.0}}, "top_p"),
    ({"prompt": "x", "sampling": {"max_tokens": 0}}, "max_tokens"),
    ({"prompt": "x", "sampling": {"max_tokens": -1}}, "max_tokens"),
    ({"prompt": "x", "sampling": {"max_tokens": 2**63}}, "max_tokens"),
    ({"prompt": "x", "sampling": {"max_tokens": 100_000}}, "max_tokens"),
    ({"prompt": "x", "sampling": {"seed": 2**63}}, "seed"),
    ({"prompt": "x", "sampling": {"top_k": -5}}, "top_k"),
    ({"prompt": "x", "sampling": {"logprobs": 10**6}}, "logprobs"),
    ({"prompt": "x", "sampling": {"logit_bias": {999: 1.0}}}, "logit_bias"),
    ({"prompt": "x", "sampling": {"stop": [""]}}, "stop"),
    ({"prompt": "x", "sampling": {"stop": ["y"] * 100}}, "stop"),
    ({"prompt": "x", "sampling": {"min_tokens": 20, "max_tokens": 10}}, "min_tokens"),
    ({"prompt": "x", "sampling": {"repetition_penalty": 0.0}}, "repetition_penalty"),
    ({"prompt": "x", "timeout_s": float("nan")}, "timeout_s"),
    ({"prompt": "x", "colour": "red"}, "colour"),
]


def test_bad_requests_get_a_clear_error_and_harm_nobody() -> None:
    async def run() -> None:
        options = mock_options(decode_kv_tokens=3500)
        async with cell(options) as running, StreamingClient(running.endpoint) as client:
            before = running.supervisor.pids()
            for request, expected in BAD_REQUESTS:
                with pytest.raises(RequestFailed) as failure:
                    await client.submit_raw(msgpack.packb(request)).finish()
                assert expected in str(failure.value), (request, str(failure.value))
                assert len(failure.value.message) < 500
            with pytest.raises(RequestFailed, match="invalid_request"):
                await client.submit_raw(msgpack.packb([1, 2, 3])).finish()
            async with StreamingClient(running.endpoint) as stranger:  # breaks the message around the request too
                with pytest.raises(ServerUnreachable, match="not a message of this protocol"):
                    await stranger.submit_raw(b"\xc0\xff\x00").finish()
            done = await client.generate(prompt_token_ids=[5], sampling=params(3)).finish()
            assert done.token_ids == fake_tokens([5], 3)
            await all_pages_back(client)
            assert running.supervisor.pids() == before

    asyncio.run(run())


def test_a_request_that_takes_too_long_is_ended() -> None:
    async def run() -> None:
        options = mock_options(fake_step_s=0.02)
        async with cell(options) as running, StreamingClient(running.endpoint) as client:
            with pytest.raises(RequestFailed, match="timeout"):
                await client.generate(prompt_token_ids=[5], sampling=params(1000), timeout_s=0.5).finish()
            await all_pages_back(client)

    asyncio.run(run())


def test_stop_strings_across_tokens_and_text() -> None:
    async def run() -> None:
        async with cell(mock_options()) as running, StreamingClient(running.endpoint) as client:
            text = bytes(fake_tokens(list(b"hello"), 40)).decode()
            stop = text[17:20]
            done = await client.generate("hello", sampling=params(40, stop=(stop,))).finish()
            assert done.text == text[: text.index(stop)]
            assert done.finish_reason is FinishReason.STOP
            assert done.stop_reason == stop
            await all_pages_back(client)

    asyncio.run(run())
