"""Who may ask, and what happens around every request?

ASGI middleware around all routes: it gives the request an id, lets in whom it may, turns every error into an answer in
the form of the OpenAI API, and writes one line into the log. Default-deny: with API keys, every path and method needs
one, but for those in `Access.public`. Decided on the decoded path as the router compares it, by equality.
"""

import hashlib
import hmac
import math
import secrets
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coordinator.config import without_port
from coordinator.http.counters import HttpCounters
from coordinator.http.errors import CLIENT_CLOSED_REQUEST, ApiError, printable
from coordinator.http.rate import RateLimit
from runtime import logs
from runtime.clock import Clock
from runtime.process import fail_loudly

_MAX_ID_CHARS = 128
_log = logs.get("http")


@dataclass(frozen=True, slots=True)
class Access:
    """Who may ask.

    Attributes:
        public: paths that need no key.
        key_digests: SHA-256 of each API key, in hexadecimal; none: no key is asked for.
        allowed_hosts: what the Host header may name, without its port; None: anything. On a loopback address this is
            what keeps web pages of others away (DNS rebinding).
    """

    public: frozenset[str]
    key_digests: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] | None = None


class Gate:
    def __init__(self, app: ASGIApp, access: Access, rate: RateLimit, counters: HttpCounters, clock: Clock) -> None:
        self._app = app
        self._public = access.public
        self._digests = tuple(bytes.fromhex(digest) for digest in access.key_digests)
        self._hosts = None if access.allowed_hosts is None else frozenset(host.lower() for host in access.allowed_hosts)
        self._rate = rate
        self._counters = counters
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        started = self._clock.now()
        headers = dict(scope["headers"])
        request_id = _request_id(headers)
        state = scope["state"]
        state["request_id"] = request_id
        scope["app"] = self  # so that the router raises for a wrong method instead of answering in plain text

        async def send_and_note(message: Message) -> None:
            if message["type"] == "http.response.start":
                state.setdefault("status", message["status"])
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            self._check(scope["path"], headers, started)
            await self._app(scope, receive, send_and_note)
        except ApiError as error:
            if error.limit is not None:
                self._counters.limit_hit(error.limit)
            await _answer(error, send_and_note)
        except HTTPException as error:
            await _answer(_of_router(error, scope), send_and_note)
        except ClientDisconnect:
            self._counters.disconnects += 1
            state["status"] = CLIENT_CLOSED_REQUEST
        except Exception as error:  # one request must not take the process along, unless it broke it
            _log.exception("a request failed in a way that nobody foresaw", extra={"fields": {"id": request_id}})
            if isinstance(error, AssertionError):
                fail_loudly(error)
            if "status" in state:
                raise
            await _answer(ApiError(500, "the server failed; its log says why", "internal"), send_and_note)
        finally:
            self._note(scope, request_id, self._clock.now() - started)

    def _check(self, path: str, headers: dict[bytes, bytes], now: float) -> None:
        if self._hosts is not None and _host(headers) not in self._hosts:
            message = "the Host header names a host that this server is not known by; see --allowed-host"
            raise ApiError(403, message, "host_not_allowed")
        if path in self._public:
            return
        wait_s = self._rate.wait_s(self._key(headers), now)
        if wait_s > 0:
            after = {"retry-after": str(math.ceil(wait_s))}
            message = f"more than {self._rate.per_minute:g} requests a minute; try again in {wait_s:.1f} s"
            raise ApiError(429, message, "rate_limited", None, after, limit="rate")

    def _key(self, headers: dict[bytes, bytes]) -> bytes:
        """The digest of the API key that was sent; nothing if none is asked for.

        Raises:
            ApiError: 401.
        """
        if not self._digests:
            return b""
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        digest = hashlib.sha256(key.strip()).digest()
        known = [hmac.compare_digest(digest, other) for other in self._digests]
        if scheme.lower() != b"bearer" or not any(known):
            message = "an API key is needed: send the header `Authorization: Bearer KEY`"
            raise ApiError(401, message, "invalid_api_key", headers={"www-authenticate": "Bearer"})
        return digest

    def _note(self, scope: Scope, request_id: str, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", None)
        status = scope["state"].get("status", CLIENT_CLOSED_REQUEST)
        self._counters.answered(route, scope["method"], status)
        fields = {
            "id": request_id,
            "method": scope["method"],
            "path": route or printable(scope["path"], 100),
            "status": status,
            "ms": round(seconds * 1000, 1),
        }
        (_log.debug if scope["method"] == "GET" and status < 400 else _log.info)("request", extra={"fields": fields})


def _request_id(headers: dict[bytes, bytes]) -> str:
    """The client's own, if it is one that can stand in a log and in a header."""
    given = headers.get(b"x-request-id", b"").decode("latin-1")
    if 0 < len(given) <= _MAX_ID_CHARS and given.isascii() and given.isprintable():
        return given
    return f"req-{secrets.token_hex(12)}"


def _host(headers: dict[bytes, bytes]) -> str:
    """The host that the client means, without its port; `[::1]` keeps its brackets."""
    return without_port(headers.get(b"host", b"").decode("latin-1").lower())


def _of_router(error: HTTPException, scope: Scope) -> ApiError:
    path = printable(scope["path"], 100)
    if error.status_code == 405:
        message = f"{scope['method']} is not possible on {path}"
        return ApiError(405, message, "method_not_allowed", headers=dict(error.headers or {}))
    return ApiError(error.status_code, f"there is no {path} here", "not_found")


async def _answer(error: ApiError, send: Send) -> None:
    body = error.body()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
