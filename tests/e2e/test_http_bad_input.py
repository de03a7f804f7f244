"""What does a request that makes no sense get, and what does it cost the next one?

Every refusal has a documented status and a short body in the form of the OpenAI API; after each, the next request is
answered; at the end no page is missing and no process was replaced.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from engine.fake import fake_tokens
from tests.support.http_cells import HostedCell, assert_api_error, hosted, mock_http
from tests.support.raw_http import ask, parse, request, say

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
USER = {"role": "user", "content": "y"}
DOCUMENTED = {400, 401, 403, 404, 405, 408, 413, 415, 429, 431, 503}
LIMITS = {"head_timeout_s": 1.0, "body_timeout_s": 0.5, "idle_timeout_s": 2.0}


@pytest.fixture(scope="module")
def cell() -> Iterator[HostedCell]:
    with hosted(mock_http(LIMITS)) as running:
        before = running.pids()
        yield running
        running.pages_back()
        assert running.pids() == before
        assert not [line for line in running.recorder.lines if "Traceback" in line]


@pytest.fixture(autouse=True)
def works_afterwards(cell: HostedCell) -> Iterator[None]:
    yield
    prompt = [5, 6, 7]
    body = {"prompt": prompt, "max_tokens": 4, "ignore_eos": True}
    answer = ask(cell.port, request(TEXT, body))
    assert answer.status == 200, answer.body
    assert answer.json()["choices"][0]["text"].encode() == bytes(fake_tokens(prompt, 4))


def refused(cell: HostedCell, data: bytes, status: int, timeout_s: float = 15.0) -> dict[str, Any]:
    answer = ask(cell.port, data, timeout_s)
    assert answer.status == status, (answer.status, answer.body[:300])
    assert answer.status in DOCUMENTED
    assert answer.headers["content-type"] == "application/json"
    return assert_api_error(answer.status, answer.body)


FIELDS: list[tuple[str, str, str | None]] = [
    # what stands in the JSON of a completion; the parameter that the error names
    (TEXT, '"temperature": NaN', None),
    (TEXT, '"temperature": Infinity', None),
    (TEXT, '"temperature": 1e400', None),
    (TEXT, '"temperature": -1', "temperature"),
    (TEXT, '"temperature": "1"', "temperature"),
    (TEXT, '"temperature": true', "temperature"),
    (TEXT, '"top_p": 0', "top_p"),
    (TEXT, '"top_p": 2', "top_p"),
    (TEXT, '"top_k": -2', "top_k"),
    (TEXT, '"min_p": 1.5', "min_p"),
    (TEXT, '"n": 0', "n"),
    (TEXT, '"n": 9', "n"),
    (TEXT, '"n": 1000000000', "n"),
    (TEXT, '"max_tokens": -1', "max_tokens"),
    (TEXT, '"max_tokens": 0', "max_tokens"),
    (TEXT, '"max_tokens": 9223372036854775808', "max_tokens"),
    (TEXT, '"max_tokens": 100000', "max_tokens"),
    (TEXT, '"max_tokens": 1e400', None),
    (TEXT, '"seed": 18446744073709551616', "seed"),
    (TEXT, '"seed": 1.5', "seed"),
    (TEXT, '"logprobs": 1000000', "logprobs"),
    (TEXT, '"stop": ""', "stop"),
    (TEXT, '"stop": [""]', "stop"),
    (TEXT, f'"stop": [{",".join(["1"] * 100_000)}]', "stop"),
    (TEXT, '"stop": [' + ",".join(['"a"'] * 100_000) + "]", "stop"),
    (TEXT, f'"stop": "{"x" * 1_000_000}"', "stop"),
    (TEXT, '"stop_token_ids": [999]', "stop_token_ids"),
    (TEXT, '"logit_bias": {"999": 1}', "logit_bias"),
    (TEXT, '"logit_bias": {"-1": 1}', "logit_bias"),
    (TEXT, '"logit_bias": {"x": 1}', "logit_bias"),
    (TEXT, '"logit_bias": {"1": 101}', "logit_bias"),
    (TEXT, '"logit_bias": [1]', "logit_bias"),
    (TEXT, '"stream": "yes"', "stream"),
    (TEXT, '"stream_options": {"include_usage": true}', "stream_options"),
    (TEXT, '"min_tokens": 20, "max_tokens": 10', "min_tokens"),
    (TEXT, '"best_of": 3', "best_of"),
    (TEXT, '"suffix": "x"', "suffix"),
    (TEXT, '"guided_regex": "x"', "guided_regex"),
    (TEXT, '"echo": true, "logprobs": 1', "echo"),
    (TEXT, '"truncate_prompt_tokens": 0', "truncate_prompt_tokens"),
    (TEXT, '"response_format": {"type": "colour"}', "response_format.type"),
    (TEXT, '"response_format": {"type": "json_schema"}', "response_format.json_schema.schema"),
    (TEXT, '"structured_outputs": {}', "structured_outputs"),
    (CHAT, '"top_logprobs": 3', "top_logprobs"),
    (CHAT, '"logprobs": true, "top_logprobs": 21', "top_logprobs"),
    (CHAT, '"tool_choice": "required"', "tool_choice"),
    (CHAT, '"tools": [{"type": "function", "function": {"name": "a b"}}]', "tools[0].function.name"),
    (CHAT, '"tools": [{"type": "function", "function": {"name": "ab"}}]', None),  # the template takes none
    (CHAT, '"tools": [{"type": "retrieval"}]', None),
    (CHAT, '"max_completion_tokens": 0', "max_completion_tokens"),
    (CHAT, '"functions": [{"name": "a"}]', "functions"),
]


@pytest.mark.parametrize(
    ("path", "field", "param"), FIELDS, ids=[f"{path[-11:]} {field[:40]}" for path, field, _ in FIELDS]
)
def test_a_field_that_is_wrong_is_named(cell: HostedCell, path: str, field: str, param: str | None) -> None:
    prompt = '"prompt": "x"' if path == TEXT else '"messages": [{"role": "user", "content": "y"}]'
    error = refused(cell, request(path, f"{{{prompt}, {field}}}".encode()), 400)
    if param is not None:
        assert (error["param"] or "").startswith(param), error


BODIES: list[tuple[str, str, Any, int]] = [
    ("no body", TEXT, b"", 400),
    ("not JSON", TEXT, b"hello", 400),
    ("cut off", TEXT, b'{"prompt": "x"', 400),
    ("a list", TEXT, b"[]", 400),
    ("null", TEXT, b"null", 400),
    ("a number", TEXT, b"1", 400),
    ("two values", TEXT, b'{"prompt": "x"} {}', 400),
    ("deep", TEXT, b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
    ("deep in a key nobody knows", TEXT, b'{"prompt": "x", "k": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
    ("deep in a refused key", TEXT, b'{"prompt": "x", "audio": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001, 400),
    ("invalid UTF-8", TEXT, b'{"prompt": "\xff\xfe"}', 400),
    ("half a surrogate", TEXT, b'{"prompt": "\\ud800"}', 400),
    ("byte order mark", TEXT, b'\xef\xbb\xbf{"prompt": "x"}', 400),
    ("raw NUL", TEXT, b'{"prompt": "\x00"}', 400),
    ("many keys", TEXT, b'{"prompt": "x"' + b"".join(b', "k%d": 1' % i for i in range(50_000)) + b"}", 400),
    ("no prompt", TEXT, {}, 400),
    ("prompt null", TEXT, {"prompt": None}, 400),
    ("empty prompt", TEXT, {"prompt": ""}, 400),
    ("no tokens", TEXT, {"prompt": []}, 400),
    ("an empty prompt in a batch", TEXT, {"prompt": ["a", ""]}, 400),
    ("texts and ids", TEXT, {"prompt": ["a", 1]}, 400),
    ("outside the vocabulary", TEXT, {"prompt": [256]}, 400),
    ("beyond 32 bits", TEXT, {"prompt": [2**31]}, 400),
    ("negative id", TEXT, {"prompt": [-1]}, 400),
    ("half an id", TEXT, {"prompt": [1.5]}, 400),
    ("longer than the context", TEXT, {"prompt": [1] * 5000}, 400),
    ("too many prompts", TEXT, {"prompt": ["a"] * 129}, 400),
    ("a million empty prompts", TEXT, b'{"prompt": [' + b",".join([b'""'] * 1_000_000) + b"]}", 400),
    ("other model", TEXT, {"prompt": "x", "model": "gpt-17"}, 404),
    ("long model", TEXT, {"prompt": "x", "model": "m" * 1_000_000}, 400),
    ("no messages", CHAT, {}, 400),
    ("empty messages", CHAT, {"messages": []}, 400),
    ("wrong role", CHAT, {"messages": [{"role": "wizard", "content": "y"}]}, 400),
    ("no content", CHAT, {"messages": [{"role": "user"}]}, 400),
    ("an image", CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, 400),
    ("5000 messages", CHAT, {"messages": [USER] * 5000}, 400),
    ("a tool nobody called", CHAT, {"messages": [{"role": "tool", "content": "y"}]}, 400),
    ("neither", "/tokenize", {}, 400),
    ("both", "/tokenize", {"prompt": "x", "messages": [USER]}, 400),
    ("outside the vocabulary", "/detokenize", {"tokens": [999]}, 400),
    ("larger than may be", TEXT, b" " * (9 << 20), 413),
    ("100 MB", TEXT, b" " * (100 << 20), 413),
]


@pytest.mark.parametrize(("path", "body", "status"), [row[1:] for row in BODIES], ids=[row[0] for row in BODIES])
def test_a_body_that_is_wrong_is_refused(cell: HostedCell, path: str, body: Any, status: int) -> None:
    refused(cell, request(path, body), status)


ROUTES: list[tuple[str, bytes, int]] = [
    ("unknown path", request("/v2/everything"), 404),
    ("long path", request("/" + "x" * 20_000), 404),
    ("encoded path", request("/%ff%00%0d%0aX:y"), 404),
    ("dots", request("/v1/../metrics"), 404),
    ("doubled", request("//v1/models"), 404),
    ("trailing", request("/v1/models/"), 404),
    ("other model", request("/v1/models/gpt-17"), 404),
    ("GET", request(TEXT), 405),
    ("POST", request("/health", {}), 405),
    ("OPTIONS", request(TEXT, method="OPTIONS"), 405),
    ("DELETE", request("/v1/models/mock", method="DELETE"), 405),
    ("HEAD of a POST route", request(TEXT, method="HEAD"), 405),
    ("asterisk", request("*", method="OPTIONS"), 404),
    ("CONNECT", request("evil:80", method="CONNECT"), 400),
    ("unknown method", request("/live", method="BREW"), 400),
    ("no content type", request(TEXT, {"prompt": "x"}, content_type=""), 415),
    ("form", request(TEXT, {"prompt": "x"}, content_type="application/x-www-form-urlencoded"), 415),
    ("plain text", request(TEXT, {"prompt": "x"}, content_type="text/plain"), 415),
    ("gzip", request(TEXT, b"\x1f\x8b" + bytes(1000), content_encoding="gzip"), 415),
]


@pytest.mark.parametrize(("data", "status"), [row[1:] for row in ROUTES], ids=[row[0] for row in ROUTES])
def test_a_route_or_type_that_is_wrong_is_refused(cell: HostedCell, data: bytes, status: int) -> None:
    answer = ask(cell.port, data)
    assert answer.status == status, answer
    if not data.startswith(b"HEAD"):
        assert_api_error(answer.status, answer.body)


_HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
_SMUGGLED = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"
FRAMING: list[tuple[str, bytes, int]] = [
    (
        "length and chunked",
        _HEAD + b"content-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + _SMUGGLED,
        400,
    ),
    (
        "chunked and length",
        _HEAD + b"transfer-encoding: chunked\r\ncontent-length: 6\r\n\r\n0\r\n\r\n" + _SMUGGLED,
        400,
    ),
    ("two lengths", _HEAD + b"content-length: 0\r\ncontent-length: 37\r\n\r\n" + _SMUGGLED, 400),
    ("length of words", _HEAD + b"content-length: abc\r\n\r\n", 400),
    ("negative length", _HEAD + b"content-length: -5\r\n\r\n", 400),
    ("huge length", _HEAD + b"content-length: 99999999999999999999\r\n\r\n", 400),
    ("chunk size of words", _HEAD + b"transfer-encoding: chunked\r\n\r\nxyz\r\n", 400),
    ("chunk size too long", _HEAD + b"transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n", 400),
    ("obfuscated encoding", _HEAD + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n" + _SMUGGLED, 400),
    ("folded header", b"GET /live HTTP/1.1\r\nhost: x\r\na: b\r\n c\r\n\r\n", 400),
    ("space before colon", b"GET /live HTTP/1.1\r\nhost : x\r\n\r\n", 400),
    ("NUL in a header", b"GET /live HTTP/1.1\r\nhost: x\0y\r\n\r\n", 400),
    ("bytes in the path", b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), 400),
    ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    ("HTTP/9", b"GET /live HTTP/9.9\r\n\r\n", 400),
    ("100,000 headers", b"GET /live HTTP/1.1\r\n" + b"a: b\r\n" * 100_000 + b"\r\n", 431),
    ("10,000 headers", b"GET /live HTTP/1.1\r\n" + b"name: value\r\n" * 10_000 + b"\r\n", 431),
    ("1 MB header", b"GET /live HTTP/1.1\r\na: " + b"b" * 1_000_000 + b"\r\n\r\n", 431),
    ("1 MB path", b"GET /" + b"b" * 1_000_000 + b" HTTP/1.1\r\n\r\n", 431),
    ("70 KB header", b"GET /live HTTP/1.1\r\na: " + b"b" * 70_000 + b"\r\n\r\n", 431),
    ("a head that stops", b"GET /live HTTP/1.1\r\nhost", 408),
    ("no head at all", b"", 408),
    ("a body that stops", _HEAD + b"content-length: 100\r\n\r\n{", 408),
    ("chunks without end", _HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\n12345\r\n", 408),
    ("more than it said", _HEAD + b'content-length: 15\r\n\r\n{"prompt": "x"}garbage', 400),
]


@pytest.mark.parametrize(("data", "status"), [row[1:] for row in FRAMING], ids=[row[0] for row in FRAMING])
def test_bytes_that_are_no_request_are_refused_and_the_connection_closed(
    cell: HostedCell, data: bytes, status: int
) -> None:
    """Nothing behind a request that is framed in two ways is taken for a request."""
    said = say(cell.port, data)
    answer = parse(said)
    assert answer.status == status, said[:300]
    assert_api_error(answer.status, answer.body)
    assert answer.headers["connection"] == "close"
    assert answer.rest == b""
    assert b"kvrelay_" not in said  # the metrics that the smuggled request asks for
