"""Which status and which body tell a client what went wrong?

Bodies have the form of the OpenAI API: `{"error": {"message", "type", "param", "code"}}`. They are short whatever was
sent, and hold nothing of the server but the words written here and in `coordinator.validation`.
"""

from collections.abc import Mapping

import msgspec

from coordinator.validation import InvalidRequest
from transport.messages.client import FailureCode

CLIENT_CLOSED_REQUEST = 499
"""Only ever in logs and metrics: nobody is there to read it."""

_MAX_MESSAGE_CHARS = 800
_MAX_PARAM_CHARS = 128
_STATUS: Mapping[FailureCode, int] = {
    "invalid_request": 400,
    "model_not_found": 404,
    "loading": 503,
    "overloaded": 429,
    "draining": 503,
    "timeout": 504,
    "worker_lost": 503,
    "internal": 500,
}
_RETRY_AFTER_S: Mapping[FailureCode, int] = {"loading": 5, "overloaded": 1, "draining": 10, "worker_lost": 1}
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """One request ends with `status` and a body that says why.

    Args:
        code: a word for programs.
        param: the field of the body that has to change.
        headers: such as Retry-After.
        limit: the bound that was hit, to be counted.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        limit: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})
        self.limit = limit

    def body(self) -> bytes:
        return msgspec.json.encode({"error": self.as_dict()})

    def as_dict(self) -> dict[str, str | None]:
        return {
            "message": printable(self.message, _MAX_MESSAGE_CHARS),
            "type": _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error"),
            "param": None if self.param is None else printable(self.param, _MAX_PARAM_CHARS),
            "code": self.code,
        }


def of_failure(code: FailureCode, message: str, param: str | None, *, tokens_sent: bool = False) -> ApiError:
    """The HTTP form of what the service says. A client is asked to try again only if that costs nobody twice."""
    headers = {}
    if code in _RETRY_AFTER_S and not tokens_sent:
        headers["retry-after"] = str(_RETRY_AFTER_S[code])
    elif _STATUS[code] >= 500:
        headers["x-should-retry"] = "false"
    return ApiError(_STATUS[code], message, code, param, headers, limit="queue" if code == "overloaded" else None)


def of_invalid(error: InvalidRequest, grammar_param: str | None = None) -> ApiError:
    """The HTTP form of a refusal, with the names of fields there; `grammar_param` is what asked for a grammar."""
    names = {"prompt_token_ids": "prompt", "grammar": grammar_param}
    refused = of_failure(error.code, error.message, names.get(error.param or "", error.param))
    refused.limit = error.limit
    return refused


def printable(text: str, most: int) -> str:
    """At most `most` characters, without control characters."""
    short = text if len(text) <= most else text[: most - 3] + "..."
    return "".join(char if char.isprintable() else " " for char in short)
