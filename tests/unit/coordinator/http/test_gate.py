"""Does the gate let in whom it should and nobody else, and does every end of a request have the form of the API?"""

import asyncio
import logging

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from coordinator.http import gate
from coordinator.http.errors import ApiError
from tests.support.asgi import Answer, Client
from tests.support.fronts import Front, front

KEYS = ("first-key", "schlüssel")
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"]
PUBLIC = {"/health", "/ready", "/live"}
PATHS = [one.path.replace("{model:path}", "m") for one in front().operations]


def ask(to: Front, method: str, path: str, *headers: tuple[bytes, bytes]) -> Answer:
    return asyncio.run(to.ask(method, path, *headers))


def bearer(key: str, scheme: str = "Bearer") -> tuple[bytes, bytes]:
    return b"authorization", f"{scheme} {key}".encode()


def raising(error: BaseException) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    return app


# --- keys ------------------------------------------------------------------------------------------------------------


def test_what_is_public_is_public() -> None:
    assert {one.path for one in front().operations if one.public} == PUBLIC


@pytest.mark.parametrize("method", METHODS)
def test_every_route_and_method_needs_a_key_but_for_the_public_ones(method: str) -> None:
    to = front(KEYS)
    for path in [*PATHS, "/", "/nothing", "/v1", "*", ""]:
        answer = ask(to, method, path)
        if path in PUBLIC:
            assert answer.status in (200, 405, 503)
            continue
        assert answer.status == 401, path
        assert answer.headers["www-authenticate"] == "Bearer"
        error = answer.error()
        assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
        assert ask(to, method, path, bearer(KEYS[0])).status != 401


@pytest.mark.parametrize(
    "path",
    [
        "//v1/models",
        "/v1//models",
        "/v1/models/",
        "/v1/../metrics",
        "/health/../metrics",
        "/health/",
        "//health",
        "/health/../v1/models",
        "/health\x00",
        "/health;/v1/models",
        "/health?x",
        "/HEALTH",
        "/%68ealth",
        "/./health",
        "health",
        "/v1/models/../../health",
        "/live/x",
    ],
)
def test_a_path_that_only_looks_public_is_not(path: str) -> None:
    to = front(KEYS)
    assert ask(to, "GET", path).status == 401
    assert ask(to, "GET", path, bearer(KEYS[0])).status in ((200,) if path == "/v1/models" else (404,))


@pytest.mark.parametrize(
    "header",
    [
        None,
        (b"authorization", b""),
        (b"authorization", b"Bearer"),
        (b"authorization", b"Bearer "),
        (b"authorization", b"first-key"),
        (b"authorization", b"Basic first-key"),
        (b"authorization", b"Bearer first-ke"),
        (b"authorization", b"Bearer first-keyy"),
        (b"authorization", b"Bearer FIRST-KEY"),
        (b"authorization", b"Bearer first-key x"),
        (b"authorization", b"Bearer " + b"k" * 60_000),
        (b"authorization", b"Bearer \xff\xfe"),
        (b"x-api-key", b"first-key"),
    ],
)
def test_a_wrong_key_opens_nothing(header: tuple[bytes, bytes] | None) -> None:
    assert ask(front(KEYS), "GET", "/v1/models", *([] if header is None else [header])).status == 401


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_each_key_opens_everything(key: str, scheme: str) -> None:
    assert ask(front(KEYS), "GET", "/v1/models", bearer(key, scheme)).status == 200
    assert ask(front(KEYS), "GET", "/v1/models", bearer(f" {key} ", scheme)).status == 200


def test_without_keys_nobody_needs_one() -> None:
    for path in ["/v1/models", "/version", "/metrics", "/openapi.json", "/docs", "/v1/models/m"]:
        assert ask(front(), "GET", path).status == 200


# --- hosts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        (b"localhost", True),
        (b"localhost:8000", True),
        (b"LocalHost:8000", True),
        (b"127.0.0.1:1", True),
        (b"[::1]", True),
        (b"[::1]:8000", True),
        (b"evil.example", False),
        (b"evil.example:8000", False),
        (b"localhost.evil.example", False),
        (b"evil.example#localhost", False),
        (b"[::2]:8000", False),
        (b"::1", False),
        (b"[localhost]", False),
        (b"", False),
        (None, False),
    ],
)
def test_only_known_hosts_are_meant(host: bytes | None, allowed: bool) -> None:
    to = front(allowed_hosts=("Localhost", "127.0.0.1", "[::1]"))
    headers = [] if host is None else [(b"host", host)]
    answer = ask(to, "GET", "/v1/models", *headers)
    assert answer.status == (200 if allowed else 403)
    assert ask(to, "GET", "/health", *headers).status in ((200, 503) if allowed else (403,))
    if not allowed:
        assert (answer.error()["type"], answer.error()["code"]) == ("permission_error", "host_not_allowed")


def test_a_forwarded_host_changes_nothing() -> None:
    to = front(allowed_hosts=("localhost",))
    assert ask(to, "GET", "/version", (b"host", b"evil"), (b"x-forwarded-host", b"localhost")).status == 403
    assert ask(front(), "GET", "/version", (b"host", b"anything")).status == 200


# --- every request ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [b"abc-123", b"x" * 128, b"with space"])
def test_a_harmless_request_id_is_echoed(given: bytes) -> None:
    for path in ("/version", "/nothing"):
        assert ask(front(), "GET", path, (b"x-request-id", given)).headers["x-request-id"] == given.decode()


@pytest.mark.parametrize(
    "given", [None, b"", b"x" * 129, b"a\r\nset-cookie: x", b"a\x00", b"\x1b[31m", b"\xe9", b"a\t"]
)
def test_any_other_request_id_is_replaced(given: bytes | None) -> None:
    headers = [] if given is None else [(b"x-request-id", given)]
    first, second = (ask(front(), "GET", "/version", *headers).headers["x-request-id"] for _ in range(2))
    assert first.startswith("req-")
    assert first != second


def test_a_path_that_is_not_there() -> None:
    answer = ask(front(), "GET", "/no\x1bthing" + "x" * 10_000)
    assert answer.status == 404
    error = answer.error()
    assert (error["type"], error["code"]) == ("not_found_error", "not_found")
    assert "\x1b" not in str(error["message"])


@pytest.mark.parametrize(("method", "path", "allow"), [("GET", "/v1/completions", "POST"), ("POST", "/health", "GET")])
def test_a_method_that_is_not_possible(method: str, path: str, allow: str) -> None:
    answer = ask(front(), method, path)
    assert answer.status == 405
    assert allow in answer.headers["allow"].split(", ")
    error = answer.error()
    assert (error["type"], error["code"]) == ("invalid_request_error", "method_not_allowed")


def test_an_error_of_the_api_keeps_its_headers() -> None:
    error = ApiError(429, "full", "overloaded", headers={"Retry-After": "1"})
    answer = ask(front(app=raising(error)), "GET", "/")
    assert (answer.status, answer.headers["retry-after"]) == (429, "1")
    assert "x-request-id" in answer.headers


def test_what_nobody_foresaw_is_a_500_without_details(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        answer = ask(front(app=raising(ValueError("a secret at /some/path"))), "GET", "/")
    assert answer.status == 500
    assert answer.error() == {
        "message": "the server failed; its log says why",
        "type": "server_error",
        "param": None,
        "code": "internal",
    }


def test_a_broken_invariant_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[BaseException] = []
    monkeypatch.setattr(gate, "fail_loudly", ended.append)
    broken = AssertionError("broken")
    assert ask(front(app=raising(broken)), "GET", "/").status == 500
    assert ended == [broken]
    assert ask(front(app=raising(KeyError("x"))), "GET", "/").status == 500
    assert ended == [broken]


def test_after_the_status_line_a_failure_ends_the_connection() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ValueError("late")

    client = Client("GET", "/")
    with pytest.raises(ValueError, match="late"):
        asyncio.run(client.ask(front(app=app).gate))
    assert client.answer.status == 200


def test_a_client_that_left_is_counted_and_hears_nothing() -> None:
    to = front(app=raising(ClientDisconnect()))
    assert ask(to, "POST", "/x").messages == []
    assert to.counters.disconnects == 1
    assert to.counters.requests == {("other", "POST", 499): 1}


def test_every_end_is_counted_by_its_route() -> None:
    to = front(KEYS)
    key = bearer(KEYS[0])
    ask(to, "GET", "/version", key)
    ask(to, "GET", "/v1/models/m", key)
    ask(to, "GET", "/v1/models/x", key)
    ask(to, "GET", "/made/up", key)
    ask(to, "BREW", "/version")
    assert to.counters.requests == {
        ("/version", "GET", 200): 1,
        ("/v1/models/{model:path}", "GET", 200): 1,
        ("/v1/models/{model:path}", "GET", 404): 1,
        ("other", "GET", 404): 1,
        ("other", "other", 401): 1,
    }


def test_other_errors_of_the_router_keep_their_status() -> None:
    assert ask(front(app=raising(HTTPException(404))), "GET", "/").status == 404


def test_what_is_not_http_is_not_answered() -> None:
    client = Client()
    client.scope["type"] = "websocket"
    asyncio.run(client.ask(front().gate))
    assert client.answer.messages == []


# --- rate ------------------------------------------------------------------------------------------------------------


def test_who_asks_too_often_is_told_when_to_come_back() -> None:
    to = front(KEYS, requests_per_minute=2)
    one, other = bearer(KEYS[0]), bearer(KEYS[1])
    assert [ask(to, "GET", "/v1/models", one).status for _ in range(3)] == [200, 200, 429]
    refused = ask(to, "GET", "/v1/models", one)
    assert (refused.headers["retry-after"], refused.error()["code"]) == ("30", "rate_limited")
    assert to.counters.limit_hits["rate"] == 2
    assert ask(to, "GET", "/v1/models", other).status == 200, "each key has its own"
    assert ask(to, "GET", "/live").status == 200, "probes do not count"
