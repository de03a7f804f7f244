"""Does every answer that an HTTP server can give end in exactly one last word, with the right times and counts?"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from launch.evaluation.http_target import HttpTarget, ServerUnusable
from launch.evaluation.results import Outcome
from launch.evaluation.targets import Reply
from runtime.clock import SystemClock
from tests.support.handoff import until

IDS = list(range(100, 108))
Behave = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


def refusal(status: int, code: str | None, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "code": code, "type": "x", "param": None}}, status=status)


async def stream(request: web.Request, *events: bytes) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for event in events:
        await response.write(b"data: " + event + b"\n\n")
    return response


def chunks(count: int, tokens: int | None = None) -> list[bytes]:
    parts = [json.dumps({"choices": [{"text": "x"}]}).encode() for _ in range(count)]
    usage = {"prompt_tokens": 8, "completion_tokens": count if tokens is None else tokens}
    return [*parts, json.dumps({"choices": [], "usage": usage}).encode(), b"[DONE]"]


async def answer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return await stream(request, *chunks(body["max_tokens"]))


def ask(
    behave: Behave, tokens: int = 3, *, first: Behave = answer, api_key: str | None = None
) -> tuple[Reply, HttpTarget, list[dict[str, Any]]]:
    """One request, after one that finds out what the server takes."""
    bodies: list[dict[str, Any]] = []

    async def completions(request: web.Request) -> web.StreamResponse:
        bodies.append(body := await request.json())
        connected = getattr(completions, "connected", False)
        return await (behave if connected else first)(request, body)

    async def models(request: web.Request) -> web.Response:
        if api_key is not None and request.headers.get("Authorization") != "Bearer right":
            return refusal(401, "invalid_api_key", "wrong key")
        return web.json_response({"object": "list", "data": [{"id": "m", "max_model_len": 64}]})

    async def talk() -> tuple[Reply, HttpTarget]:
        app = web.Application()
        app.router.add_post("/v1/completions", completions)
        app.router.add_get("/v1/models", models)
        async with (
            TestServer(app) as server,
            HttpTarget(f"http://127.0.0.1:{server.port}", SystemClock(), api_key) as target,
        ):
            served = await target.models()
            assert served[0].max_model_len == 64
            await target.connect(served[0].id, IDS)
            completions.connected = True  # type: ignore[attr-defined]
            reply = Reply(sent_at=0.0)
            await target.ask(target.encode(IDS, tokens), reply)
            return reply, target

    reply, target = asyncio.run(talk())
    assert reply.ended_at is not None
    return reply, target, bodies


def test_an_answer() -> None:
    reply, target, bodies = ask(answer)
    assert reply.outcome is Outcome.COMPLETED
    assert len(reply.token_at) == 3
    assert reply.sent_at <= reply.token_at[0] <= reply.token_at[-1] <= (reply.ended_at or 0.0)
    assert reply.prompt_tokens == 8
    assert bodies[-1]["prompt"] == IDS
    assert bodies[-1]["ignore_eos"] is True
    assert bodies[-1]["min_tokens"] == bodies[-1]["max_tokens"] == 3
    assert bodies[-1]["temperature"] == 0
    assert target.notes() == ()


def test_chunks_of_unknown_size_are_corrected_and_said() -> None:
    async def coarse(request: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
        return await stream(request, *chunks(2, tokens=6))

    reply, target, _ = ask(coarse, tokens=6)
    assert len(reply.token_at) == 6
    assert any("1 of 1 answers" in note for note in target.notes())


@pytest.mark.parametrize(
    ("status", "code", "outcome"),
    [
        (429, "overloaded", Outcome.REJECTED),
        (503, "draining", Outcome.REJECTED),
        (503, "worker_lost", Outcome.FAILED),
        (500, "internal", Outcome.FAILED),
        (400, None, Outcome.FAILED),
    ],
)
def test_a_status_is_an_outcome_with_its_code(status: int, code: str | None, outcome: Outcome) -> None:
    async def refuse(_request: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
        return refusal(status, code, "no")

    reply, _, _ = ask(refuse)
    assert reply.outcome is outcome
    assert reply.error == f"{code or status}: no"


def test_an_error_in_the_stream_is_a_failure_that_keeps_its_tokens() -> None:
    async def fail(request: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
        error = json.dumps({"error": {"message": "gone", "code": "worker_lost"}}).encode()
        return await stream(request, chunks(1)[0], error, b"[DONE]")

    reply, _, _ = ask(fail)
    assert (reply.outcome, reply.error, len(reply.token_at)) == (Outcome.FAILED, "worker_lost: gone", 1)


def test_a_stream_that_ends_early_has_failed() -> None:
    async def stop(request: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
        return await stream(request, chunks(1)[0])

    reply, _, _ = ask(stop)
    assert reply.outcome is Outcome.FAILED
    assert str(reply.error).startswith("incomplete")


def test_a_connection_that_breaks_has_failed() -> None:
    async def abort(request: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
        response = await stream(request, chunks(1)[0])
        assert request.transport is not None
        request.transport.abort()
        return response

    reply, _, _ = ask(abort)
    assert reply.outcome is Outcome.FAILED
    assert str(reply.error).startswith("connection")


def test_nonsense_has_failed() -> None:
    async def babble(request: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
        return await stream(request, b"{not json")

    reply, _, _ = ask(babble)
    assert str(reply.error).startswith("protocol")


def test_a_server_that_refuses_ids_is_asked_in_words_and_the_note_says_so() -> None:
    async def words_only(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if not isinstance(body["prompt"], str):
            return refusal(400, "invalid_type", "a string, please")
        return await answer(request, body)

    reply, target, bodies = ask(words_only, first=words_only)
    assert reply.outcome is Outcome.COMPLETED
    assert len(bodies[-1]["prompt"].split()) == len(IDS)
    assert any("text" in note for note in target.notes())


def test_a_server_without_extensions_is_asked_plainly_and_the_note_says_so() -> None:
    async def strict(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if "ignore_eos" in body:
            return refusal(422, None, "unknown field")
        return await answer(request, body)

    _, target, bodies = ask(strict, first=strict)
    assert bodies[-1]["prompt"] == IDS
    assert any("ignore_eos" in note for note in target.notes())


def test_the_key_goes_along_and_a_wrong_one_is_told() -> None:
    ask(answer, api_key="right")
    with pytest.raises(ServerUnusable, match="API key"):
        ask(answer, api_key="wrong")


def test_a_server_that_takes_nothing_is_unusable() -> None:
    async def refuse(_request: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
        return refusal(404, None, "no such route")

    with pytest.raises(ServerUnusable, match="no such route"):
        ask(answer, first=refuse)


def test_nobody_there_is_unusable() -> None:
    async def knock() -> None:
        async with HttpTarget("http://127.0.0.1:9", SystemClock()) as target:
            await target.models()

    with pytest.raises(ServerUnusable, match="does not answer"):
        asyncio.run(knock())


def test_to_cancel_a_request_is_to_leave_the_server() -> None:
    left = asyncio.Event()

    async def endless(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if body["max_tokens"] == 2:
            return await answer(request, body)
        response = await stream(request, chunks(1)[0])
        try:
            await asyncio.Event().wait()
        finally:
            left.set()
        return response

    async def first_body(request: web.Request) -> web.StreamResponse:
        return await endless(request, await request.json())

    async def talk() -> Reply:
        app = web.Application()
        app.router.add_post("/v1/completions", first_body)
        async with (
            TestServer(app, handler_cancellation=True) as server,
            HttpTarget(f"http://127.0.0.1:{server.port}", SystemClock()) as target,
        ):
            await target.connect("m", IDS)
            reply = Reply(sent_at=0.0)
            task = asyncio.get_running_loop().create_task(target.ask(target.encode(IDS, 9), reply))
            await until(lambda: bool(reply.token_at))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            async with asyncio.timeout(10):
                await left.wait()
            return reply

    reply = asyncio.run(talk())
    assert reply.ended_at is None
    assert len(reply.token_at) == 1
