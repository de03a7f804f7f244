"""How does the body of a request get in, whoever sends it?

Bounded in size and in patience; only plain JSON. Reads from ASGI's `receive`, on the loop thread.
"""

import asyncio

from starlette.requests import ClientDisconnect, Request

from coordinator.config import HttpLimits
from coordinator.http.errors import ApiError


async def read_json_body(request: Request, limits: HttpLimits) -> bytes:
    """
    Raises:
        ApiError: 413 too large, 408 too slow, 415 not JSON.
        ClientDisconnect: nobody is there any more.
    """
    _check_type(request)
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > limits.max_body_bytes:
        raise _too_large(limits)
    body = bytearray()
    while True:
        try:
            async with asyncio.timeout(limits.body_timeout_s):
                message = await request.receive()
        except TimeoutError as error:
            headers = {"connection": "close"}
            raise ApiError(
                408, "the body stopped arriving", "body_timeout", None, headers, limit="body_timeout"
            ) from error
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > limits.max_body_bytes:
            raise _too_large(limits)
        if not message.get("more_body", False):
            return bytes(body)


def _check_type(request: Request) -> None:
    """Only JSON by name: a web page can post anything else to a loopback address without asking its browser."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "send the header `Content-Type: application/json`", "unsupported_media_type")
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise ApiError(415, "send the body without Content-Encoding", "unsupported_encoding")


def _too_large(limits: HttpLimits) -> ApiError:
    message = f"the body is larger than {limits.max_body_bytes} bytes"
    return ApiError(413, message, "body_too_large", None, {"connection": "close"}, limit="body_bytes")
