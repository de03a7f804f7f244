"""Is a mask exactly what the language of a grammar allows next, and does a bad grammar do no more than fail?

The oracle lists a finite language with Python's `re` and knows nothing of llguidance. One difference is wanted: where
the next bytes are certain, llguidance may insist on the tokens that the tokenizer would make of them.
"""

import itertools
import random
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from coordinator import structured
from engine.grammar import GrammarCompiler, UnusableTokenizer, short
from engine.port import GrammarError, Matcher, TokenMask
from tests.support.schema import SCHEMA, is_compact_json_of_the_schema
from tests.support.tiny_tokenizer import byte_fallback, byte_level

EOS = (1, 3)
VOCAB = 424  # three more than the tokenizer has


@pytest.fixture(scope="module")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tokenizer.json"
    byte_level().save(str(path))
    return path


@pytest.fixture(scope="module")
def compiler(tokenizer_json: Path) -> GrammarCompiler:
    return GrammarCompiler(tokenizer_json, VOCAB, EOS)


def tokens(mask: TokenMask) -> list[int]:
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    return [int(token) for token in np.flatnonzero(bits)]


def walk(matcher: Matcher, seed: int, limit: int = 200) -> list[int]:
    """An answer that follows the masks at random, without its end of sequence."""
    source, output = random.Random(seed), list[int]()
    while len(output) < limit:
        token = source.choice(tokens(matcher.allowed(output)))
        if token in EOS:
            return output
        output.append(token)
    raise AssertionError("the grammar does not end")


def text(compiler: GrammarCompiler, output: list[int]) -> str:
    return b"".join(compiler.token_bytes(token) for token in output).decode()


# --- masks -----------------------------------------------------------------------------------------------------------

PATTERNS = [
    ("(the|tha|he|e){1,2}", "thea", 6),
    ("[ab]{1,3}c?", "abc", 4),
    ("a*b?", "ab", 5),
    ("(th|t)(he|e)?", "the", 5),
]


def language(pattern: str, alphabet: str, longest: int) -> Iterator[bytes]:
    for length in range(longest + 1):
        for letters in itertools.product(alphabet, repeat=length):
            if re.fullmatch(pattern, "".join(letters)):
                yield "".join(letters).encode()


@pytest.mark.parametrize(("pattern", "alphabet", "longest"), PATTERNS)
@pytest.mark.parametrize("seed", range(5))
def test_a_mask_is_what_the_language_allows(
    compiler: GrammarCompiler, pattern: str, alphabet: str, longest: int, seed: int
) -> None:
    bounded = f"({pattern})" if "*" not in pattern else pattern.replace("*", f"{{0,{longest - 1}}}")
    words = set(language(bounded, alphabet, longest))
    matcher, source = compiler.matcher(structured.regex(bounded)), random.Random(seed)
    names = {token: compiler.token_bytes(token) for token in range(4, VOCAB)}
    output: list[int] = []
    while True:
        so_far = b"".join(names[token] for token in output)
        rests = {word[len(so_far) :] for word in words if word.startswith(so_far)}
        wanted = [token for token, name in names.items() if name and any(rest.startswith(name) for rest in rests)]
        wanted = sorted([*EOS, *wanted] if b"" in rests else wanted)
        found = tokens(matcher.allowed(output))
        if b"" in rests or len({rest[0] for rest in rests}) > 1:
            assert found == wanted
        else:  # the next byte is certain
            assert found
            assert set(found) <= set(wanted)
        token = source.choice(found)
        if token in EOS:
            break
        output.append(token)
    assert so_far in words


@pytest.mark.parametrize("seed", range(20))
def test_every_walk_through_a_schema_is_valid_json_of_it(compiler: GrammarCompiler, seed: int) -> None:
    answer = text(compiler, walk(compiler.matcher(structured.json_schema(SCHEMA)), seed))
    assert is_compact_json_of_the_schema(answer)


def test_behind_the_end_only_the_end_of_sequence_is_allowed(compiler: GrammarCompiler) -> None:
    matcher = compiler.matcher(structured.choice(["b"]))
    (b,) = tokens(matcher.allowed([]))
    assert tokens(matcher.allowed([b])) == list(EOS)


def test_a_mask_names_no_token_that_the_model_does_not_have(tokenizer_json: Path) -> None:
    for vocab in (421, 420, 300):
        mask = GrammarCompiler(tokenizer_json, vocab, EOS).matcher(structured.regex(r"(.|\n)*")).allowed([])
        assert mask.shape == (-(-vocab // 32),)
        assert max(tokens(mask)) < vocab


# --- the hand-off ----------------------------------------------------------------------------------------------------


def test_a_matcher_that_joins_late_allows_the_same(compiler: GrammarCompiler) -> None:
    """Decode builds its own from the grammar and token 1; it may join anywhere else as well."""
    grammar = structured.json_schema(SCHEMA)
    output = walk(compiler.matcher(grammar), seed=3)
    first = compiler.matcher(grammar)
    masks = [first.allowed(output[:k]) for k in range(len(output) + 1)]
    for k, mask in enumerate(masks):
        late = compiler.matcher(grammar)
        assert (late.allowed(output[:k]) == mask).all()
        assert (late.allowed(output[:k]) == mask).all()  # asked twice
        if k < len(output):
            assert (late.allowed(output[: k + 1]) == masks[k + 1]).all()


def test_an_output_cannot_become_shorter(compiler: GrammarCompiler) -> None:
    matcher = compiler.matcher(structured.regex("[ab]*"))
    matcher.allowed(walk(compiler.matcher(structured.regex("[ab]{2}")), 0))
    with pytest.raises(ValueError, match="have been seen"):
        matcher.allowed([])


# --- errors ----------------------------------------------------------------------------------------------------------

DEAD_END = 'start: "b" A\nA: /c/ & /d/'


def test_a_dead_end_fails_that_matcher_and_stays_failed(compiler: GrammarCompiler) -> None:
    matcher, other = compiler.matcher(DEAD_END), compiler.matcher(structured.regex("b*"))
    (b,) = tokens(matcher.allowed([]))
    for _ in range(2):
        with pytest.raises(GrammarError, match="after 1 tokens"):
            matcher.allowed([b])
    assert b in tokens(other.allowed([b]))


def test_a_token_outside_the_grammar_is_an_error_that_does_not_quote_it(
    compiler: GrammarCompiler, capfd: pytest.CaptureFixture[str]
) -> None:
    (b,) = tokens(compiler.matcher(structured.choice(["b"])).allowed([]))
    with pytest.raises(GrammarError, match="cannot be followed") as caught:
        compiler.matcher(structured.choice(["secret"])).allowed([b])
    assert "secret" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_grammar_that_cannot_be_built_fails_at_its_first_use(compiler: GrammarCompiler) -> None:
    with pytest.raises(GrammarError, match="cannot be built"):
        compiler.matcher("start: missing").allowed([])


def test_no_token_of_the_model_fits(tokenizer_json: Path) -> None:
    matcher = GrammarCompiler(tokenizer_json, 420, EOS).matcher("start: <[420]>")
    with pytest.raises(GrammarError, match="no token of the model"):
        matcher.allowed([])


@pytest.mark.parametrize("grammar", ["start: missing", "start: /(/", "{}", '{"grammars":[]}', "A: /a/ & /b/\nstart: A"])
def test_check_says_why(compiler: GrammarCompiler, grammar: str) -> None:
    error = compiler.check(grammar)
    assert error
    assert "\n" not in error
    assert len(error) < 310
    assert compiler.check("start: /a+/") is None


def test_a_long_error_is_cut() -> None:
    assert short("a  b\n c") == "a b c"
    assert len(short("x" * 1000)) == 303


# --- tokenizers ------------------------------------------------------------------------------------------------------


def test_the_bytes_of_tokens(compiler: GrammarCompiler, tmp_path: Path) -> None:
    tokenizer = byte_level()
    for part in ("the", "東京", "😀", "\n"):
        ids = tokenizer.encode(part, add_special_tokens=False).ids
        assert b"".join(map(compiler.token_bytes, ids)) == part.encode()
    assert compiler.token_bytes(3) == b"<|im_end|>"
    assert compiler.token_bytes(VOCAB + 1) == b""
    byte_fallback().save(str(tmp_path / "tokenizer.json"))
    fallback = GrammarCompiler(tmp_path / "tokenizer.json", 300, (2,))
    assert fallback.token_bytes(3 + 0xE2) == b"\xe2"
    assert walk_text(fallback, structured.choice(["hello world"])) == "hello world"


def walk_text(compiler: GrammarCompiler, grammar: str) -> str:
    matcher, output = compiler.matcher(grammar), list[int]()
    while (token := tokens(matcher.allowed(output))[0]) != 2:
        output.append(token)
    return text(compiler, output)


def test_truncation_of_the_file_is_ignored(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    compiler = GrammarCompiler(tmp_path / "tokenizer.json", VOCAB, EOS)
    sentence = "the prefill worker computes the cache"
    assert text(compiler, walk(compiler.matcher(structured.choice([sentence])), 0)) == sentence


@pytest.mark.parametrize(("content", "eos"), [("{}", EOS), ("no json", EOS), (None, EOS), (None, ()), (None, (9999,))])
def test_an_unusable_tokenizer_says_so(tmp_path: Path, content: str | None, eos: tuple[int, ...]) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UnusableTokenizer):
        GrammarCompiler(path, VOCAB, eos)


def test_a_grammar_that_is_too_complex_a_token_later_is_found_by_the_trial(compiler: GrammarCompiler) -> None:
    """llguidance's bound on the items of a row is met only behind the opening brace of so many optional keys."""
    keys = {f"p{number}": {"type": "string"} for number in range(1000)}
    error = compiler.check(
        structured.json_schema({"type": "object", "properties": keys, "additionalProperties": False})
    )
    assert error is not None
    assert "too complex" in error
