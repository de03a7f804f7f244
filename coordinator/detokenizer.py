"""Which text became certain with this token?

One detokenizer per request, on the coordinator's loop. A character may be spread over several tokens; until it is
complete, decoding shows U+FFFD in its place, which is held back. Everything shown plus the flush is the decoding of all
tokens at once. One exception: the byte-fallback form of SentencePiece takes a character back when invalid bytes follow
it; what is shown stays shown.

`tokenizers.decoders.DecodeStream` is not used: it cannot be flushed, and it decodes all it holds again at each token of
a run of invalid bytes or of special tokens, such as the end-of-sequence tokens of a request that ignores them.
"""

import codecs
from collections.abc import Set
from typing import Protocol

from tokenizers import Tokenizer

_REPLACEMENT = "\ufffd"
_MAX_UNCERTAIN = 3
"""Replacement characters that an incomplete character of at most 3 bytes can show as."""
_MAX_UNCERTAIN_TOKENS = 9
"""Tokens that so many replacement characters can stand for: each for up to 3 bytes of an invalid sequence."""


class Detokenizer(Protocol):
    def push(self, token_id: int) -> str:
        """The text that became certain with this token; often empty."""
        ...

    def flush(self) -> str:
        """The text that is still held back; called once, after the last token."""
        ...


class HfDetokenizer:
    """Decodes the last few tokens again with each new one, never all of them.

    The window is what was completed last (decoders treat the first token of a text specially, and the bytes of
    neighbouring characters together) and what is not complete yet.

    Args:
        special: ids that have no text; empty, and special tokens are shown as text.
    """

    def __init__(self, tokenizer: Tokenizer, special: Set[int]) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._window: list[int] = []
        self._context = 0  # tokens at the start of the window whose text is complete
        self._shown = 0  # characters of the window's text that are shown

    def push(self, token_id: int) -> str:
        if token_id in self._special:
            return ""
        self._window.append(token_id)
        text = self._decode()
        certain = len(text.rstrip(_REPLACEMENT))
        overlong = len(self._window) > 2 * _MAX_UNCERTAIN_TOKENS  # that is no character any more but invalid bytes
        if overlong:
            certain = max(certain, len(text) - _MAX_UNCERTAIN)
        fresh = text[self._shown : certain]
        self._shown = max(self._shown, certain)
        if certain == len(text):
            self._cut(self._context, uncertain=0)
            self._context = len(self._window)
        elif overlong:
            self._cut(len(self._window) - _MAX_UNCERTAIN_TOKENS, uncertain=len(text) - self._shown)
            self._context = 0
        return fresh

    def flush(self) -> str:
        return self._decode()[self._shown :]

    def _cut(self, tokens: int, uncertain: int) -> None:
        """Forget the first `tokens` of the window; all but the last `uncertain` characters of the rest are shown."""
        del self._window[:tokens]
        self._shown = len(self._decode()) - uncertain

    def _decode(self) -> str:
        return self._tokenizer.decode(self._window, skip_special_tokens=bool(self._special))


class ByteDetokenizer:
    """A token is a byte of UTF-8."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self._decoder.decode(bytes((token_id,)))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class NoDetokenizer:
    """The model has no text."""

    def push(self, token_id: int) -> str:  # noqa: ARG002 - as the others
        return ""

    def flush(self) -> str:
        return ""
