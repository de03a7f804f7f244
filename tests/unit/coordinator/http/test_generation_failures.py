"""Does a request for generation that fails say why in the right place, with nothing left running?"""

import asyncio

import pytest

from coordinator.streams import StreamDelta
from tests.support.answers import STOP
from tests.support.asgi import delta, settle
from tests.support.generations import Stage, scene
from transport.messages.client import FailureCode

FAILURES: list[tuple[FailureCode, int, str | None]] = [
    ("invalid_request", 400, None),
    ("model_not_found", 404, None),
    ("loading", 503, "5"),
    ("overloaded", 429, "1"),
    ("draining", 503, "10"),
    ("timeout", 504, None),
    ("worker_lost", 503, "1"),
    ("internal", 500, None),
]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("code", "status", "retry_after"), FAILURES)
def test_a_failure_before_the_first_token_has_a_status(
    stream: bool, code: FailureCode, status: int, retry_after: str | None
) -> None:
    async def play() -> None:
        stage = Stage(stream=stream, n=2)
        await settle()
        stage.service.fail(1, code)
        error = await stage.failure()
        assert (error.status, error.code, error.message) == (status, code, f"it is {code}")
        assert error.headers.get("retry-after") == retry_after
        assert error.headers.get("x-should-retry") == ("false" if status >= 500 and retry_after is None else None)
        assert stage.service.cancelled == [100, 101]
        assert stage.counters.disconnects == 0

    asyncio.run(play())


@scene
async def test_a_failure_in_mid_stream_is_an_event_and_then_done() -> None:
    stage = Stage(stream=True, n=2, stream_options={"include_usage": True})
    await settle()
    stage.service.say(0, delta(0, "a", STOP))
    await settle()
    stage.service.fail(1, "worker_lost")
    answer = await stage.end()
    assert answer.complete
    *_, error, done = stage.events
    assert done == "[DONE]"
    assert error == {
        "error": {"message": "it is worker_lost", "type": "server_error", "param": None, "code": "worker_lost"}
    }
    assert stage.events.count("[DONE]") == 1
    assert 101 in stage.service.cancelled
    assert stage.counters.disconnects == 0


@scene
async def test_a_failure_after_a_comment_is_an_event() -> None:
    stage = Stage(stream=True)
    await settle()
    stage.tick(16.0)
    await settle()
    stage.service.fail(0, "timeout")
    await stage.end()
    comment, error, done = stage.events
    assert (comment, error["error"]["code"], done) == (": keep-alive", "timeout", "[DONE]")


@scene
async def test_a_queue_that_fills_up_with_choice_2_stops_the_others() -> None:
    stage = Stage(room=2, n=4, stream=True)
    error = await stage.failure()
    assert (error.status, error.headers["retry-after"]) == (429, "1")
    assert len(stage.service.started) == 3, "what follows would not fit either"
    assert stage.service.cancelled == [100, 101, 102]


@scene
async def test_a_failure_that_comes_together_with_tokens_still_has_a_status() -> None:
    stage = Stage(stream=True)
    await settle()
    stage.service.say(0, delta(0, "a"))
    stage.service.fail(0, "worker_lost")
    assert (await stage.failure()).headers["retry-after"] == "1"


@scene
async def test_a_broken_answer_leaves_nothing_running() -> None:
    stage = Stage(stream=True, logprobs=True)
    await settle()
    stage.service.say(0, StreamDelta(0, delta(0, "a").tokens, "a"))
    with pytest.raises(AssertionError):
        await stage.end()
    assert stage.service.cancelled == [100]


@scene
async def test_a_server_that_stops_leaves_nothing_running() -> None:
    stage = Stage(stream=True, n=2)
    await settle()
    stage.running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stage.end()
    assert stage.service.cancelled == [100, 101]
