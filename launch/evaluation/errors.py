"""Which outcome does an error of an HTTP server stand for, and in which words?

Pure. Errors are in the form of the OpenAI API, `{"error": {"message": ..., "code": ...}}`, or in any other.
"""

import msgspec
from msgspec import Struct

_TURNED_AWAY = (429, 503)
_ERROR_CHARS = 300


class Refusal(Struct, frozen=True, kw_only=True):
    """An answer with another status than 200."""

    error: str  # a code, then words
    turned_away: bool  # the server had no room for it; else it has failed


def refusal(status: int, body: bytes) -> Refusal:
    code, text = code_and_text(body)
    return Refusal(error=f"{code or status}: {text}", turned_away=status in _TURNED_AWAY and code != "worker_lost")


def amid_stream(payload: bytes) -> str:
    """Of an event that is an error: a code, then words."""
    code, text = code_and_text(payload)
    return f"{code or 'error'}: {text}"


def code_and_text(body: bytes) -> tuple[str | None, str]:
    try:
        told = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return None, body.decode(errors="replace")[:_ERROR_CHARS]
    error = told.get("error", told) if isinstance(told, dict) else told
    if isinstance(error, dict):
        code = error.get("code")
        return (str(code) if code else None), str(error.get("message", error))[:_ERROR_CHARS]
    return None, str(error)[:_ERROR_CHARS]
