"""Is every error short and in the form of the OpenAI API, whatever it quotes?"""

import json
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.http.errors import _STATUS, ApiError, of_failure, of_invalid, printable
from coordinator.validation import InvalidRequest
from transport.messages.client import FailureCode


def test_every_failure_has_a_status() -> None:
    assert _STATUS.keys() == set(get_args(getattr(FailureCode, "__value__", FailureCode)))


@pytest.mark.parametrize("code", list(_STATUS))
def test_who_has_read_tokens_is_not_asked_to_try_again(code: FailureCode) -> None:
    """A second try would cost the work of the first one again."""
    error = of_failure(code, "x", None, tokens_sent=True)
    assert "retry-after" not in error.headers
    assert error.headers == ({"x-should-retry": "false"} if error.status >= 500 else {})


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (413, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
        (503, "server_error"),
    ],
)
def test_the_type_follows_from_the_status(status: int, kind: str) -> None:
    assert json.loads(ApiError(status, "why", "code", "field").body()) == {
        "error": {"message": "why", "type": kind, "param": "field", "code": "code"}
    }


def test_a_refusal_of_the_service_keeps_its_words() -> None:
    error = of_invalid(InvalidRequest("too long", "prompt"))
    assert (error.status, error.message, error.param) == (400, "too long", "prompt")
    assert of_invalid(InvalidRequest("no such model", "model", "model_not_found")).status == 404


@given(st.text(), st.none() | st.text(), st.integers(min_value=1, max_value=3000))
def test_a_body_is_short_and_printable(message: str, param: str | None, times: int) -> None:
    error = ApiError(400, message * times, "code", None if param is None else param * times)
    body = error.body()
    assert len(body) < 4096
    said = json.loads(body)["error"]
    assert said["message"].isprintable()
    assert said["param"] is None or said["param"].isprintable()


def test_what_is_cut_says_so() -> None:
    assert printable("x" * 10, 10) == "x" * 10
    assert printable("x" * 11, 10) == "x" * 7 + "..."
    assert printable("a\nb\x1b\ud800", 10) == "a b  "
