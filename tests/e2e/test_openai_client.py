"""Does the `openai` package get from a cell what it gets from OpenAI?

One 1P1D cell with SmolLM2 serves the module; the oracle is `transformers` in this process.
"""

import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import openai
import pytest
import torch
from openai.types.chat import ChatCompletionMessageParam
from transformers import AutoModelForCausalLM, AutoTokenizer

from coordinator.config import HttpConfig, RequestLimits
from engine.loading import quiet_transformers
from launch.config import CellOptions
from tests.support.http_cells import HostedCell, hosted, mock_http

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(200)]

MODEL = "smollm2"
CHAT: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": "You answer in one sentence."},
    {"role": "user", "content": "What is the capital of France?"},
]
STORY = "Once upon a time, there was a little girl who"
KEY = "sk-of-a-test"


@pytest.fixture(scope="module")
def cell(smollm2: Path) -> Iterator[HostedCell]:
    with hosted(CellOptions(model_dir=str(smollm2), model_name=MODEL, http=HttpConfig(port=0))) as running:
        yield running
        running.pages_back()


@pytest.fixture(scope="module")
def client(cell: HostedCell) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{cell.api}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


class Reference:
    """The same model in this process."""

    def __init__(self, directory: Path) -> None:
        with quiet_transformers():
            self.model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        tokenizer: Any = AutoTokenizer
        self.tokenizer: Any = tokenizer.from_pretrained(directory)

    def chat_ids(self, messages: list[ChatCompletionMessageParam]) -> list[int]:
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def greedy(self, prompt: list[int], tokens: int) -> list[int]:
        ids = torch.tensor([prompt])
        out = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, pad_token_id=0
        )
        return list(out[0, len(prompt) :].tolist())

    def text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def logprobs(self, prompt: list[int], answer: list[int]) -> torch.Tensor:
        """Of the whole vocabulary, one row per token of the answer."""
        with torch.inference_mode():
            logits = self.model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        return cast(torch.Tensor, logits.float().log_softmax(-1))


@pytest.fixture(scope="module")
def reference(smollm2: Path) -> Reference:
    return Reference(smollm2)


# --- chat ------------------------------------------------------------------------------------------------------------


def test_a_chat_answers_what_transformers_answers(client: openai.OpenAI, reference: Reference) -> None:
    done = client.chat.completions.create(model=MODEL, messages=CHAT, temperature=0, max_completion_tokens=12)
    prompt = reference.chat_ids(CHAT)
    wanted = reference.greedy(prompt, 12)
    choice = done.choices[0]
    assert choice.message.content == reference.text(wanted)
    assert choice.message.role == "assistant"
    assert choice.finish_reason in ("stop", "length")
    assert done.object == "chat.completion"
    assert done.id.startswith("chatcmpl-")
    assert done.model == MODEL
    assert done.usage is not None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (len(prompt), len(wanted))
    assert done.usage.total_tokens == len(prompt) + len(wanted)


def test_a_streamed_chat_is_the_whole_one_in_pieces(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=CHAT, temperature=0, max_tokens=12)
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=CHAT,
            temperature=0,
            max_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1
    *body, last = chunks
    assert last.choices == []
    assert last.usage == whole.usage
    assert all(chunk.usage is None for chunk in body)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in body) == whole.choices[0].message.content
    assert body[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in body[1:])
    reasons = [chunk.choices[0].finish_reason for chunk in body]
    assert reasons == [None] * (len(reasons) - 1) + [whole.choices[0].finish_reason]


def test_usage_can_be_on_every_chunk(client: openai.OpenAI) -> None:
    chunks = list(
        client.completions.create(
            model=MODEL,
            prompt=STORY,
            max_tokens=5,
            stream=True,
            extra_body={"ignore_eos": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
        )
    )
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage is not None]
    assert len(counts) == len(chunks)
    assert counts == sorted(counts)
    assert counts[-1] == 5
    assert chunks[-1].choices == []


def test_samples_with_a_seed_repeat_and_differ_among_each_other(client: openai.OpenAI) -> None:
    def draw(seed: int) -> list[str | None]:
        done = client.chat.completions.create(
            model=MODEL, messages=CHAT, n=3, seed=seed, temperature=1.0, max_tokens=12, extra_body={"ignore_eos": True}
        )
        assert [choice.index for choice in done.choices] == [0, 1, 2]
        assert done.usage is not None
        assert done.usage.completion_tokens == 36  # the prompt counts once, see the next line
        assert done.usage.total_tokens == done.usage.prompt_tokens + 36
        return [choice.message.content for choice in done.choices]

    first = draw(7)
    assert draw(7) == first
    assert len(set(first)) == 3
    assert draw(8) != first


def test_streamed_samples_are_told_apart_by_their_index(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": CHAT, "n": 3, "seed": 7, "temperature": 1.0, "max_tokens": 8}
    whole = client.chat.completions.create(**asked)
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]


def test_stop_strings_end_an_answer_before_them(client: openai.OpenAI, reference: Reference) -> None:
    wanted = reference.text(reference.greedy(reference.chat_ids(CHAT), 12))
    stop = wanted[9:13]
    done = client.chat.completions.create(
        model=MODEL, messages=CHAT, temperature=0, max_tokens=12, stop=["never said", stop]
    )
    assert done.choices[0].message.content == wanted[: wanted.index(stop)]
    assert done.choices[0].finish_reason == "stop"
    assert done.choices[0].to_dict()["stop_reason"] == stop


def test_n_has_a_limit(client: openai.OpenAI) -> None:
    eight = client.completions.create(model=MODEL, prompt="a", n=8, max_tokens=1, seed=1)
    assert len(eight.choices) == 8
    with pytest.raises(openai.BadRequestError, match="at most 8") as refused:
        client.completions.create(model=MODEL, prompt="a", n=9, max_tokens=1)
    assert refused.value.param == "n"


def test_many_async_streams_at_once(cell: HostedCell, client: openai.OpenAI) -> None:
    wanted = client.completions.create(model=MODEL, prompt=STORY, temperature=0, max_tokens=8).choices[0].text

    async def one(client: openai.AsyncOpenAI) -> str:
        stream = await client.completions.create(
            model=MODEL, prompt=STORY, temperature=0, max_tokens=8, stream=True, timeout=60
        )
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def run() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{cell.api}/v1", api_key="none", max_retries=0) as many:
            return await asyncio.gather(*(one(many) for _ in range(6)))

    assert set(asyncio.run(run())) == {wanted}


# --- log-probabilities -----------------------------------------------------------------------------------------------


def test_chat_logprobs_are_those_of_transformers(client: openai.OpenAI, reference: Reference) -> None:
    done = client.chat.completions.create(
        model=MODEL, messages=CHAT, temperature=0, max_tokens=8, logprobs=True, top_logprobs=3
    )
    assert done.choices[0].logprobs is not None
    entries = done.choices[0].logprobs.content
    assert entries is not None
    prompt = reference.chat_ids(CHAT)
    answer = reference.greedy(prompt, 8)
    expected = reference.logprobs(prompt, answer)
    assert len(entries) == len(answer)
    for entry, token, row in zip(entries, answer, expected, strict=True):
        assert entry.logprob == pytest.approx(float(row[token]), abs=1e-3)
        assert bytes(entry.bytes or []).decode(errors="replace") == entry.token
        best = row.topk(3).values.tolist()
        assert [one.logprob for one in entry.top_logprobs] == pytest.approx(best, abs=1e-3)
        assert entry.top_logprobs[0].token == entry.token  # greedy
    text = b"".join(bytes(entry.bytes or []) for entry in entries)
    assert text.decode().removesuffix("<|im_end|>") == done.choices[0].message.content


def test_completion_logprobs_are_those_of_transformers(client: openai.OpenAI, reference: Reference) -> None:
    ids = list(reference.tokenizer(STORY)["input_ids"])
    answer = reference.greedy(ids, 8)
    expected = reference.logprobs(ids, answer)
    done = client.completions.create(model=MODEL, prompt=ids, temperature=0, max_tokens=8, logprobs=2)
    told = done.choices[0].logprobs
    assert told is not None
    assert told.token_logprobs == pytest.approx(
        [float(row[t]) for row, t in zip(expected, answer, strict=True)], abs=1e-3
    )
    assert told.tokens is not None
    assert told.top_logprobs is not None
    for row, top in zip(expected, told.top_logprobs, strict=True):
        assert sorted(top.values(), reverse=True) == pytest.approx(row.topk(2).values.tolist(), abs=1e-3)
    assert "".join(told.tokens) == done.choices[0].text
    assert told.text_offset == [len("".join(told.tokens[:i])) for i in range(len(told.tokens))]


def test_streamed_logprobs_are_the_whole_ones_in_pieces(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": CHAT, "temperature": 0, "max_tokens": 6, "logprobs": True}
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].logprobs is not None
    pieces: list[Any] = []
    for chunk in client.chat.completions.create(**asked, stream=True):
        if chunk.choices[0].logprobs is not None:
            pieces += chunk.choices[0].logprobs.content or []
    assert [piece.token for piece in pieces] == [entry.token for entry in whole.choices[0].logprobs.content or []]


# --- completions and models ------------------------------------------------------------------------------------------


def test_a_prompt_can_be_text_ids_or_a_batch_of_either(client: openai.OpenAI, reference: Reference) -> None:
    texts = [STORY, "The capital of France is"]
    ids = [list(reference.tokenizer(text)["input_ids"]) for text in texts]
    wanted = [reference.text(reference.greedy(one, 6)) for one in ids]
    asked: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": 6}
    for prompt in (texts[0], ids[0]):
        done = client.completions.create(prompt=prompt, **asked)
        assert [choice.text for choice in done.choices] == wanted[:1]
    for prompts in (texts, ids):
        done = client.completions.create(prompt=prompts, **asked)
        assert [choice.text for choice in done.choices] == wanted
        assert done.usage is not None
        assert done.usage.prompt_tokens == sum(map(len, ids))
    echoed = client.completions.create(prompt=texts[1], echo=True, **asked)
    assert echoed.choices[0].text == texts[1] + wanted[1]


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == MODEL
    assert model.to_dict()["root"] == MODEL
    assert model.to_dict()["max_model_len"] == 8192
    assert client.models.retrieve(MODEL) == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt/17")


# --- errors ----------------------------------------------------------------------------------------------------------


def test_errors_are_of_the_class_that_says_what_to_do(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=MODEL, messages=CHAT, temperature=-1)
    assert (bad.value.param, bad.value.code, bad.value.type) == (
        "temperature",
        "invalid_value",
        "invalid_request_error",
    )
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-17", messages=CHAT)
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="context"):
        client.completions.create(model=MODEL, prompt=[1] * 9000)
    with pytest.raises(openai.BadRequestError, match="not supported") as suffix:
        client.completions.create(model=MODEL, prompt="a", suffix="b")
    assert suffix.value.param == "suffix"


def test_a_template_without_tools_says_so(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="tools") as refused:
        client.chat.completions.create(
            model=MODEL, messages=CHAT, tools=[{"type": "function", "function": {"name": "weather"}}]
        )
    assert len(str(refused.value)) < 500


def test_a_key_is_asked_for() -> None:
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    with hosted(mock_http(http={"api_key_digests": (digest,)})) as cell:
        for key in ("wrong", KEY + "x", "k" * 10_000):
            with openai.OpenAI(base_url=f"{cell.api}/v1", api_key=key, max_retries=0) as stranger:
                with pytest.raises(openai.AuthenticationError) as refused:
                    stranger.models.list()
                assert refused.value.code == "invalid_api_key"
        with openai.OpenAI(base_url=f"{cell.api}/v1", api_key=KEY, max_retries=0) as friend:
            assert friend.models.list().data[0].id == "mock"
            assert friend.completions.create(model="mock", prompt="a", max_tokens=3).usage is not None


def test_a_full_queue_is_a_rate_limit_that_passes() -> None:
    """One request decodes, one waits, the third is told when to come back, and the package does that by itself."""

    async def run(cell: HostedCell) -> None:
        async with openai.AsyncOpenAI(base_url=f"{cell.api}/v1", api_key="none", max_retries=0, timeout=60) as client:
            asked: dict[str, Any] = {"model": "mock", "prompt": "a", "extra_body": {"ignore_eos": True}}
            hog = await client.completions.create(**asked, max_tokens=3000, stream=True)
            await anext(aiter(hog))
            waiting = asyncio.create_task(client.completions.create(**asked, max_tokens=3))
            await asyncio.to_thread(cell.until_in_flight, 2)
            with pytest.raises(openai.RateLimitError) as refused:
                await client.completions.create(**asked, max_tokens=3)
            assert refused.value.response.headers["retry-after"] == "1"
            assert (refused.value.code, refused.value.type) == ("overloaded", "rate_limit_error")
            loop = asyncio.get_running_loop()
            began = loop.time()
            patient = asyncio.create_task(client.with_options(max_retries=5).completions.create(**asked, max_tokens=3))
            await asyncio.sleep(0.3)
            await hog.close()
            await patient
            assert 0.9 < loop.time() - began < 20  # it waited for the second that Retry-After asks for
            await waiting

    with hosted(mock_http(fake_step_s=0.01, max_batch=1, requests=RequestLimits(max_queued_requests=1))) as cell:
        asyncio.run(run(cell))
        cell.pages_back()
