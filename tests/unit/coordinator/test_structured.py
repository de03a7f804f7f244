"""Is what a client asks for one grammar, or refused with what to change?"""

import json
from collections.abc import Callable

import numpy as np
import pytest

from coordinator import structured
from engine.grammar import GrammarCompiler
from engine.port import GrammarError
from runtime.params import MAX_GRAMMAR_CHARS
from tests.support.tiny_tokenizer import byte_level

END = 1


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> GrammarCompiler:
    path = tmp_path_factory.mktemp("tiny") / "tokenizer.json"
    byte_level().save(str(path))
    return GrammarCompiler(path, 421, (END,))


def matches(compiler: GrammarCompiler, grammar: str, text: str) -> bool:
    """The grammar takes the whole of `text` and may end behind it."""
    try:
        mask = compiler.matcher(grammar).allowed(byte_level().encode(text, add_special_tokens=False).ids)
    except GrammarError:
        return False
    return bool(np.unpackbits(mask.view(np.uint8), bitorder="little")[END])


def test_any_json_object(compiler: GrammarCompiler) -> None:
    grammar = structured.json_object()
    for value in ({}, {"a": [1, {"b": None}], "é": "😀\n"}):
        assert matches(compiler, grammar, json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    for text in ("[]", '"a"', "{", '{"a":1,}', "x"):
        assert not matches(compiler, grammar, text)


def test_json_has_no_whitespace_unless_the_schema_says_so(compiler: GrammarCompiler) -> None:
    schema: dict[str, object] = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    for text in ('{"a": 1}', '{ "a":1}', '{"a":1 }', '{"a":1}\n'):
        assert not matches(compiler, structured.json_schema(schema), text)
    assert matches(compiler, structured.json_schema(schema), '{"a":1}')
    flexible = {**schema, "x-guidance": {"whitespace_flexible": True}}
    assert matches(compiler, structured.json_schema(flexible), '{ "a":\n1}')


def test_a_regular_expression_matches_the_whole_answer(compiler: GrammarCompiler) -> None:
    for pattern in ("a+b", "^a+b$"):
        assert matches(compiler, structured.regex(pattern), "aab")
        for text in ("aabc", "aa", "caab"):
            assert not matches(compiler, structured.regex(pattern), text)
    assert matches(compiler, structured.regex(r"[\d/]+\n\w"), "1/2\né")
    assert not matches(compiler, structured.regex(r"\d"), "٤")


def test_choices_are_taken_as_they_are(compiler: GrammarCompiler) -> None:
    options = ["a", "ab", 'say "hi"\n', "東京 😀", "a|b", "\\d", "/x/", "a: b", "\x01\x7f", "the $5 & more", "a"]
    grammar = structured.choice(options)
    assert all(matches(compiler, grammar, option) for option in options)
    assert not any(matches(compiler, grammar, text) for text in ("b", "1", "abc", "A", "x"))
    assert matches(compiler, structured.choice(["", "a"]), "")


@pytest.mark.parametrize(
    "text",
    [
        'start: pair+\npair: "(" pair* ")"',
        'root ::= pair+\npair ::= "(" pair* ")"  # a comment',
        'root   ::= pair more\nmore ::= pair*\n\npair ::= "(" more ")"',
    ],
)
def test_a_grammar_is_lark_or_gbnf(compiler: GrammarCompiler, text: str) -> None:
    grammar = structured.grammar(text)
    assert matches(compiler, grammar, "(()())()")
    assert not matches(compiler, grammar, "(()")
    assert not matches(compiler, grammar, "")


def nested(levels: int) -> dict[str, object]:
    schema: dict[str, object] = {"type": "string", "description": "[{" * 100 + '\\"'}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def test_a_schema_may_be_deep_but_not_too_deep(compiler: GrammarCompiler) -> None:
    assert compiler.check(structured.json_schema(nested(60))) is None
    with pytest.raises(ValueError, match="levels deep"):
        structured.json_schema(nested(64))
    with pytest.raises(ValueError, match="deep"):
        structured.json_schema(nested(100_000))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: structured.json_schema({"a": object()}), "no JSON"),
        (lambda: structured.json_schema({"maximum": float("nan")}), "no JSON"),
        (lambda: structured.json_schema({"description": "x" * MAX_GRAMMAR_CHARS}), "characters"),
        (lambda: structured.regex(""), "empty"),
        (lambda: structured.regex("a" * (MAX_GRAMMAR_CHARS + 1)), "characters"),
        (lambda: structured.choice([]), "nothing to choose"),
        (lambda: structured.choice(["x" * MAX_GRAMMAR_CHARS]), "characters"),
        (lambda: structured.grammar("  \n"), "empty"),
        (lambda: structured.grammar("x" * (MAX_GRAMMAR_CHARS + 1)), "characters"),
        (lambda: structured.grammar('root ::= "a'), "no GBNF"),
        (lambda: structured.grammar('other ::= "a"'), "no GBNF: No 'root' rule"),
        (lambda: structured.grammar("root ::= missing"), "no GBNF: Rule 'missing' not found"),
        (lambda: structured.grammar("root ::= " + "(" * 10_000), "nested too deeply"),
    ],
)
def test_what_is_no_grammar_is_refused_in_words(make: Callable[[], str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_a_keyword_that_is_not_supported_is_named(compiler: GrammarCompiler) -> None:
    unsupported: dict[str, object] = {"type": "object", "dependentSchemas": {"a": {}}}
    assert "dependentSchemas" in (compiler.check(structured.json_schema(unsupported)) or "")
