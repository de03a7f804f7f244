"""Which tokens does a grammar allow next?

A shell around llguidance (ADR-0014), without torch, so that the coordinator may use it, too. A `GrammarMatcher` is a
function of a grammar and the output so far: it consumes the tokens that it has not seen yet, wherever they were made,
so nothing of it crosses the hand-off.

llguidance reports errors by entering a state that it never leaves, in which everything but the end is forbidden; each
call here looks for that state. Its own texts quote the answer, so only those about the grammar alone are passed on.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from engine.port import GrammarError, TokenMask

_MAX_ERROR_CHARS = 300
_INITIAL_LEXER_FUEL = 300_000  # the default is 1,000,000; the enum of 10,000 strings needs less than this
_TRIAL_STEPS = 8
_SILENT = 0  # llguidance would write what it refuses to stderr: answers are not logged


class UnusableTokenizer(Exception):
    """llguidance cannot work with this tokenizer; the model is served without grammars."""


class GrammarCompiler:
    """A model's tokenizer as llguidance has it; immutable, so any thread may use it.

    Takes a quarter of a second for 49,152 tokens.
    """

    def __init__(self, tokenizer_json: Path, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        """
        Args:
            vocab_size: of the model, which may have more or fewer tokens than its tokenizer.
            eos_token_ids: what may follow the end of a grammar.

        Raises:
            UnusableTokenizer: there is no way to bytes from its tokens, or no end-of-sequence token.
        """
        eos = [token for token in eos_token_ids if token < vocab_size]
        if not eos:
            raise UnusableTokenizer("the model has no end-of-sequence token, so an answer could not end")
        try:
            source = _without_truncation(tokenizer_json)
            try:
                self._tokenizer = LLTokenizer(source, n_vocab=vocab_size, eos_token=eos)
            except ValueError:  # perhaps the tokenizer has more tokens than the model
                self._tokenizer = LLTokenizer(source, eos_token=eos)
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            raise UnusableTokenizer(f"llguidance cannot read the tokenizer: {short(str(error))}") from error
        self._vocab_size = vocab_size

    def matcher(self, grammar: str) -> "GrammarMatcher":
        """Costs nothing: the grammar is built at the matcher's first use."""
        return GrammarMatcher(self._tokenizer, self._vocab_size, grammar)

    def check(self, grammar: str) -> str | None:
        """Build the grammar and take its first steps: why it cannot be used, in words for who wrote it; None if it can.

        Can crash or hang the process with a grammar that is made for it: see `engine.grammar_trial`.
        """
        matcher = _build(self._tokenizer, grammar)
        if matcher.is_error():
            return short(matcher.get_error())
        walk = self.matcher(grammar)
        output: list[int] = []
        try:
            for _ in range(_TRIAL_STEPS):  # some grammars are built with ease, and too complex a few tokens later
                allowed = walk.allowed(output)
                output.append(_lowest(allowed))
                if output[-1] in self._tokenizer.eos_tokens:
                    break
        except GrammarError as error:
            return str(error)
        return None

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for, as bytes; the name of a special token; nothing for an id without a token."""
        return self._tokenizer.decode_bytes([token_id]) if token_id < self._tokenizer.vocab_size else b""


class GrammarMatcher:
    """One request's place in its grammar. Engine thread only."""

    def __init__(self, tokenizer: LLTokenizer, vocab_size: int, grammar: str) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._grammar = grammar
        self._matcher: LLMatcher | None = None
        self._seen = 0

    def allowed(self, output: Sequence[int]) -> TokenMask:
        """See `engine.port.Matcher`."""
        if self._matcher is None:
            self._matcher = _build(self._tokenizer, self._grammar)
            if self._matcher.is_error():
                raise GrammarError("the grammar cannot be built")
        if len(output) < self._seen:
            raise ValueError(f"an output of {len(output)} tokens where {self._seen} have been seen")
        fresh = list(output[self._seen :])
        if fresh and not self._matcher.consume_tokens(fresh):
            raise GrammarError(f"the grammar cannot be followed beyond {self._seen} tokens: too complex, or not theirs")
        self._seen = len(output)
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.int32)[: -(-self._vocab_size // 32)].copy()
        if self._matcher.is_error():
            raise GrammarError(f"after {self._seen} tokens the grammar cannot be followed: too complex, or a dead end")
        if spare := -self._vocab_size % 32:
            mask[-1] &= np.int32((1 << (32 - spare)) - 1)
        if not mask.any():
            raise GrammarError(f"after {self._seen} tokens no token of the model fits the grammar")
        return mask


def _lowest(mask: TokenMask) -> int:
    """The lowest token that a mask allows."""
    word = int(np.flatnonzero(mask)[0])
    bits = int(mask[word]) & 0xFFFFFFFF
    return 32 * word + (bits & -bits).bit_length() - 1


def short(text: str) -> str:
    """An error of llguidance on one line of bounded length."""
    line = " ".join(text.split())
    return line if len(line) <= _MAX_ERROR_CHARS else f"{line[:_MAX_ERROR_CHARS]}..."


def _build(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    limits = LLParserLimits(initial_lexer_fuel=_INITIAL_LEXER_FUEL, verbose_errors=False)
    return LLMatcher(tokenizer, grammar, log_level=_SILENT, limits=limits)


def _without_truncation(tokenizer_json: Path) -> str:
    """The tokenizer's text; with its truncation llguidance would cut the tokens of a long forced text, too."""
    fields = msgspec.json.decode(tokenizer_json.read_bytes(), type=dict[str, msgspec.Raw])
    nothing = msgspec.Raw(b"null")
    return msgspec.json.encode(fields | {"truncation": nothing, "padding": nothing}).decode()
