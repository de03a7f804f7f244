"""Does a body get in only if it is JSON, small and in time?"""

import asyncio

import pytest
from starlette.requests import ClientDisconnect, Request

from coordinator.config import HttpLimits
from coordinator.http.body import read_json_body
from coordinator.http.errors import ApiError
from tests.support.asgi import Client

JSON = (b"content-type", b"application/json")


def read(client: Client, *, timeout_s: float = 5.0) -> bytes:
    limits = HttpLimits(max_body_bytes=10, body_timeout_s=timeout_s)
    request = Request(client.scope, client.receive)
    return asyncio.run(read_json_body(request, limits))


def refused(client: Client, status: int, limit: str | None = None, *, timeout_s: float = 5.0) -> ApiError:
    with pytest.raises(ApiError) as error:
        read(client, timeout_s=timeout_s)
    assert error.value.status == status
    assert error.value.limit == limit
    return error.value


@pytest.mark.parametrize("kind", [b"application/json", b"application/json; charset=utf-8", b"Application/JSON ;x"])
def test_a_body_comes_in_pieces(kind: bytes) -> None:
    assert read(Client(body=[b'{"a"', b"", b":1}"], headers=[(b"content-type", kind)])) == b'{"a":1}'


def test_a_body_may_be_as_large_as_the_limit() -> None:
    headers = [JSON, (b"content-length", b"10")]
    assert read(Client(body=[b"x" * 10], headers=headers)) == b"x" * 10


@pytest.mark.parametrize("announced", [b"11", b"8388609", b"9" * 5000])
def test_a_body_that_announces_too_much_is_not_read(announced: bytes) -> None:
    client = Client(body=[b"x"], headers=[JSON, (b"content-length", announced)])
    error = refused(client, 413, "body_bytes")
    assert error.headers == {"connection": "close"}
    assert client._body == [b"x"]


@pytest.mark.parametrize("announced", [None, b"", b"5", b"-1", b"x", b"\xb2", b"0" * 30])
def test_a_body_that_grows_too_large_is_refused_whatever_it_announced(announced: bytes | None) -> None:
    length = [] if announced is None else [(b"content-length", announced)]
    client = Client(body=[b"x" * 6, b"x" * 5, b"x"], headers=[JSON, *length])
    error = refused(client, 413, "body_bytes")
    assert error.headers == {"connection": "close"}
    assert client._body == [b"x"], "what follows is not read"


def test_a_body_that_stops_arriving_is_late() -> None:
    client = Client(body=[b"{"], headers=[JSON], ends_body=False)
    error = refused(client, 408, "body_timeout", timeout_s=0.02)
    assert error.headers == {"connection": "close"}


@pytest.mark.parametrize("kind", [None, b"", b"text/plain", b"application/x-www-form-urlencoded", b"application/jsonx"])
def test_only_json_by_name_is_read(kind: bytes | None) -> None:
    """A web page may send anything else to a loopback address without asking."""
    client = Client(body=[b"{}"], headers=[] if kind is None else [(b"content-type", kind)])
    assert refused(client, 415).code == "unsupported_media_type"
    assert client._body == [b"{}"]


@pytest.mark.parametrize(("encoding", "taken"), [(b"gzip", False), (b"br", False), (b"identity", True)])
def test_an_encoded_body_is_refused(encoding: bytes, taken: bool) -> None:
    client = Client(body=[b"{}"], headers=[JSON, (b"content-encoding", encoding)])
    if taken:
        assert read(client) == b"{}"
    else:
        assert refused(client, 415).code == "unsupported_encoding"


def test_a_client_that_leaves_inside_its_body_is_gone() -> None:
    client = Client(body=[b"{"], headers=[JSON], ends_body=False)
    client.gone.set()
    with pytest.raises(ClientDisconnect):
        read(client)
