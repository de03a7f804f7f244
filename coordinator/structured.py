"""Which grammar does a client mean?

One function per way to ask for structured output, each to the one form that travels: `SamplingParams.grammar`. Pure;
whether the grammar can be built is the next question (`coordinator.text.Text.check_grammar`).

JSON comes out compact, without any whitespace: a small model that is free to write whitespace may write it until
`max_tokens`. A schema's own `x-guidance` object may say otherwise (`{"whitespace_flexible": true}`).
"""

import json
import re
from collections.abc import Mapping, Sequence

from llguidance import LLMatcher, regex_to_lark
from llguidance.gbnf_to_lark import gbnf_to_lark

from runtime.params import MAX_GRAMMAR_CHARS

_COMPACT = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}
_MAX_SCHEMA_DEPTH = 64
_GBNF_RULE = re.compile(r"^[ \t]*[\w-]+[ \t]*::=", re.MULTILINE)


def json_object() -> str:
    """Any JSON object."""
    return json_schema({"type": "object"})


def json_schema(schema: Mapping[str, object]) -> str:
    """JSON that a JSON schema allows.

    Raises:
        ValueError: it is no JSON, too large or too deep. Keywords that llguidance does not know are refused later.
    """
    text = _bounded(_dumps(schema), "the schema")
    if _depth(text) > _MAX_SCHEMA_DEPTH:
        raise ValueError(f"the schema is nested more than {_MAX_SCHEMA_DEPTH} levels deep: use $defs and $ref")
    return _bounded(LLMatcher.grammar_from_json_schema(text, defaults=_COMPACT), "the schema")  # type: ignore[arg-type]  # a dict


def regex(pattern: str) -> str:
    """Text that a regular expression matches from its beginning to its end.

    The syntax is Rust's, without look-around and `\\1`; `\\d` is one of ten ASCII digits, not of Unicode's hundreds.

    Raises:
        ValueError: it is empty or too long.
    """
    if not pattern:
        raise ValueError("the regular expression is empty")
    lark = regex_to_lark(_bounded(pattern, "the regular expression"), "d")
    return _bounded(f"start: /{lark}/", "the regular expression")


def choice(options: Sequence[str]) -> str:
    """One of several texts.

    Raises:
        ValueError: there is none, or they are too long.
    """
    if not options:
        raise ValueError("there is nothing to choose from: give at least one string")
    quoted = " | ".join(_lark_string(option) for option in dict.fromkeys(options))
    return _bounded(f"start: {quoted}", "the choice")


def grammar(text: str) -> str:
    """A context-free grammar in Lark's form as llguidance has it, or in GBNF (`root ::= ...`), which is translated.

    Raises:
        ValueError: it is empty, too long, or no GBNF where it looks like one.
    """
    if not text.strip():
        raise ValueError("the grammar is empty")
    _bounded(text, "the grammar")
    if _GBNF_RULE.search(text) is None:
        return text
    try:
        return _bounded(gbnf_to_lark(text), "the grammar")
    except RecursionError:
        raise ValueError("the grammar is nested too deeply") from None
    except Exception as error:  # its only way to refuse
        raise ValueError(f"the grammar is no GBNF: {error}") from error


def _lark_string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")  # json leaves this one as it is


def _bounded(text: str, what: str) -> str:
    if len(text) > MAX_GRAMMAR_CHARS:
        raise ValueError(f"{what} has {len(text)} characters; {MAX_GRAMMAR_CHARS} are allowed")
    return text


def _dumps(schema: Mapping[str, object]) -> str:
    try:
        return json.dumps(dict(schema), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the schema is no JSON: {error}") from error
    except RecursionError:
        raise ValueError("the schema is nested too deeply") from None


def _depth(text: str) -> int:
    """Of brackets in JSON text, those in strings left out."""
    depth = deepest = 0
    for bracket in re.findall(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', text):
        if bracket in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif bracket in "]}":
            depth -= 1
    return deepest
