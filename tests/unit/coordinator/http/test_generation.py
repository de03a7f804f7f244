"""Does every request for generation end with an answer, or with nothing left running once nobody reads it?"""

import asyncio
import json

import pytest

from tests.support.answers import STOP
from tests.support.asgi import delta, settle
from tests.support.generations import Stage, contents, scene

# --- good ends -------------------------------------------------------------------------------------------------------


@scene
async def test_a_stream_from_its_first_token_to_done() -> None:
    stage = Stage(stream=True, stream_options={"include_usage": True})
    await settle()
    assert stage.client.answer.messages == [], "no status before the first token"
    assert (len(stage.open), stage.counters.open_streams) == (1, 1)
    for index, letter in enumerate("ab"):
        stage.service.say(0, delta(index, letter))
        await settle()
        assert len(stage.client.answer.messages) == 2 + index, "a token goes out when it comes"
    stage.service.say(0, delta(2, "c", STOP))
    answer = await stage.end()
    assert answer.status == 200
    assert answer.headers == {
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-cache",
        "x-accel-buffering": "no",
    }
    assert answer.complete
    assert contents(stage.events) == ["", "a", "b", "c"]
    *_, usage, done = stage.events
    assert (usage["choices"], usage["usage"]["completion_tokens"], done) == ([], 3, "[DONE]")
    assert stage.service.cancelled == []
    assert stage.counters.disconnects == 0


@scene
async def test_usage_is_not_said_unless_asked_for() -> None:
    stage = Stage(stream=True)
    await settle()
    stage.service.say(0, delta(0, "a", STOP))
    await stage.end()
    assert all("usage" not in event for event in stage.events[:-1])
    assert stage.events[-1] == "[DONE]"
    assert stage.events.count("[DONE]") == 1


@scene
async def test_a_whole_answer() -> None:
    stage = Stage(n=2)
    await settle()
    stage.service.say(1, delta(0, "x", STOP))
    stage.service.say(0, delta(0, "a"))
    await settle()
    assert stage.client.answer.messages == []
    assert stage.counters.open_streams == 0
    stage.service.say(0, delta(1, "b", STOP))
    answer = await stage.end()
    assert (answer.status, answer.complete) == (200, True)
    assert answer.headers == {"content-type": "application/json", "content-length": str(len(answer.body))}
    assert [choice["message"]["content"] for choice in json.loads(answer.body)["choices"]] == ["ab", "x"]
    assert stage.service.cancelled == []


@scene
async def test_samples_of_one_prompt_differ_and_are_reproducible() -> None:
    stage = Stage(n=3, seed=(1 << 63) - 2)
    await settle()
    assert [one.sampling.seed for one in stage.service.started] == [(1 << 63) - 2, (1 << 63) - 1, 0]
    assert {one.prompt for one in stage.service.started} == {tuple(b"hi")}
    for number in range(3):
        stage.service.say(number, delta(0, "a", STOP))
    await stage.end()


@scene
async def test_one_answer_keeps_its_seed() -> None:
    stage = Stage(seed=-5)
    await settle()
    assert [one.sampling.seed for one in stage.service.started] == [-5]
    stage.service.say(0, delta(0, "a", STOP))
    await stage.end()


@scene
async def test_a_completion_streams_as_a_chat_does() -> None:
    stage = Stage(texts=True, stream=True, n=2)
    await settle()
    stage.service.say(1, delta(0, "x", STOP))
    stage.service.say(0, delta(0, "a", STOP))
    await stage.end()
    assert [(event["choices"][0]["index"], event["choices"][0]["text"]) for event in stage.events[:-1]] == [
        (1, "x"),
        (0, "a"),
    ]


# --- readers who are slow or gone ------------------------------------------------------------------------------------


@scene
async def test_tokens_gather_while_the_reader_is_slow() -> None:
    stage = Stage(stream=True, n=2)
    await settle()
    stage.service.say(0, delta(0, "a"))
    await settle()
    stage.client.reads.clear()
    stage.service.say(0, delta(1, "b"))
    await settle()
    for index in range(2, 1000):
        stage.service.say(0, delta(index, "c"))
        stage.service.say(1, delta(index - 2, "x"))
        await asyncio.sleep(0)
    waiting = stage.generation._inbox.deltas
    assert len(waiting) == 2, "one delta per choice, however many tokens"
    stage.client.reads.set()
    stage.service.say(0, delta(1000, "d", STOP))
    stage.service.say(1, delta(998, "y", STOP))
    await stage.end()
    assert contents(stage.events) == ["", "a", "b", "c" * 998 + "d"]
    assert contents(stage.events, 1) == ["", "x" * 998 + "y"]


@scene
async def test_tokens_were_passed_on_before_a_slow_reader_took_them() -> None:
    """The ledger ends where the socket begins, as it does for a client over ZeroMQ."""
    stage = Stage(stream=True)
    await settle()
    stage.client.reads.clear()
    given_at = stage.clock.time
    stage.service.say(0, delta(0, "a", STOP))
    await settle()
    stage.clock.time += 5.0
    stage.client.reads.set()
    await stage.end()
    moments = stage.service.sinks[0].moments
    assert (moments.first_passed_at, moments.last_passed_at) == (given_at, given_at)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("tokens", [0, 2])
def test_a_client_that_leaves_takes_every_choice_along(stream: bool, tokens: int) -> None:
    async def play() -> None:
        stage = Stage(stream=stream, n=3)
        await settle()
        for index in range(tokens):
            stage.service.say(1, delta(index, "a"))
            await settle()
        stage.client.gone.set()
        await stage.end()
        assert stage.service.cancelled == [100, 101, 102]
        assert stage.counters.disconnects == 1
        assert stage.client.scope["state"]["status"] == 499
        assert not any(event == "[DONE]" for event in (stage.events if stream and tokens else []))

    asyncio.run(play())


@scene
async def test_a_client_that_leaves_after_its_answer_is_no_disconnect() -> None:
    stage = Stage(stream=True)
    await settle()
    stage.service.say(0, delta(0, "a", STOP))
    stage.client.gone.set()
    await stage.end()
    assert stage.service.cancelled == []
    assert "status" not in stage.client.scope["state"]


@scene
async def test_what_a_client_still_sends_is_not_its_end() -> None:
    stage = Stage(stream=True)
    stage.client._body = [b"", b"more"]
    await settle()
    assert not stage.running.done()
    stage.service.say(0, delta(0, "a", STOP))
    await stage.end()
    assert stage.counters.disconnects == 0


@scene
async def test_a_reader_that_stalls_is_cut_off_and_counted() -> None:
    stage = Stage(stream=True, n=2)
    await settle()
    stage.service.say(0, delta(0, "a"))
    await settle()
    stage.client.reads.clear()
    stage.service.say(0, delta(1, "b"))
    await settle()
    stage.tick(30.0)
    assert not stage.client.aborted
    stage.tick(0.1)
    stage.tick(0.1)
    assert stage.client.aborted
    await stage.end()
    assert stage.counters.limit_hits["reader_stall"] == 1
    assert stage.counters.disconnects == 1
    assert stage.service.cancelled == [100, 101]


@pytest.mark.parametrize("stream", [True, False])
def test_a_reader_that_never_took_anything_is_cut_off_too(stream: bool) -> None:
    """Its buffers may be full of answers to earlier requests of its connection."""

    async def play() -> None:
        stage = Stage(stream=stream)
        stage.client.reads.clear()
        await settle()
        stage.service.say(0, delta(0, "a", None if stream else STOP))
        await settle()
        stage.tick(30.1)
        assert stage.client.aborted
        await stage.end()
        assert stage.counters.limit_hits["reader_stall"] == 1

    asyncio.run(play())


@scene
async def test_a_reader_that_takes_something_in_time_is_not_cut_off() -> None:
    stage = Stage(stream=True)
    await settle()
    for index in range(4):
        stage.client.reads.clear()
        stage.service.say(0, delta(index, "a"))
        await settle()
        stage.tick(20.0)
        stage.client.reads.set()
        await settle()
    assert not stage.client.aborted
    stage.service.say(0, delta(4, "b", STOP))
    await stage.end()
    assert stage.counters.limit_hits["reader_stall"] == 0


@scene
async def test_silence_is_broken_by_a_comment() -> None:
    stage = Stage(stream=True)
    await settle()
    stage.tick(15.0)
    await settle()
    assert stage.client.answer.messages == []
    stage.tick(0.1)
    await settle()
    assert stage.client.answer.status == 200, "a proxy hears something before the first token, too"
    assert stage.events == [": keep-alive"]
    stage.tick(10.0)
    await settle()
    stage.service.say(0, delta(0, "a"))
    await settle()
    stage.tick(10.0)
    await settle()
    assert stage.events.count(": keep-alive") == 1, "a token is a sign of life"
    stage.tick(5.1)
    await settle()
    assert stage.events[-1] == ": keep-alive"
    stage.service.say(0, delta(1, "b", STOP))
    answer = await stage.end()
    assert answer.status == 200
    assert contents(stage.events) == ["", "a", "b"]


@scene
async def test_a_token_that_is_held_back_is_no_silence() -> None:
    stage = Stage(stream=True, tools=[{"type": "function", "function": {"name": "f"}}])
    await settle()
    stage.tick(16.0)
    await settle()
    for index, letter in enumerate('{"x":'):
        stage.service.say(0, delta(index, letter))
        await settle()
    assert stage.events.count(": keep-alive") == 1, "one per silence, not one per token"
    stage.service.say(0, delta(5, "1}", STOP))
    await stage.end()
    assert contents(stage.events) == ["", '{"x":1}']


@scene
async def test_a_whole_answer_is_not_interrupted_by_comments() -> None:
    stage = Stage()
    await settle()
    stage.tick(100.0)
    await settle()
    assert stage.client.answer.messages == []
    stage.service.say(0, delta(0, "a", STOP))
    assert json.loads((await stage.end()).body)["choices"]
