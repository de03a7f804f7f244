"""Is the text of a stream the text of its tokens, and is no half of a character ever shown?"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.detokenizer import ByteDetokenizer, Detokenizer, HfDetokenizer
from tests.support.tiny_tokenizer import byte_fallback, byte_level

BYTE_LEVEL = byte_level()
BYTE_FALLBACK = byte_fallback()
VOCAB = BYTE_LEVEL.get_vocab_size()
SPECIAL = frozenset(range(4))
FFFD = "\ufffd"
AWKWARD = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("é東😀🚀\u200d\ufffd\x00 \n")))


def stream(detokenizer: Detokenizer, token_ids: list[int]) -> list[str]:
    return [*(detokenizer.push(token_id) for token_id in token_ids), detokenizer.flush()]


def byte_token(byte: int) -> int:
    """The token of `BYTE_LEVEL` for one byte: GPT-2 writes the bytes that are no visible character as U+0100 and on."""
    hidden = [b for b in range(256) if not (33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255)]
    return BYTE_LEVEL.get_vocab()[chr(256 + hidden.index(byte) if byte in hidden else byte)]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, VOCAB + 3), max_size=80))
def test_random_tokens_give_the_decoding_of_all(token_ids: list[int]) -> None:
    """Random ids are mostly invalid UTF-8; some are special and some unknown, and have no text."""
    pieces = stream(HfDetokenizer(BYTE_LEVEL, SPECIAL), token_ids)
    assert "".join(pieces) == BYTE_LEVEL.decode(token_ids, skip_special_tokens=True)


@settings(max_examples=300, deadline=None)
@given(AWKWARD)
def test_text_comes_back_and_no_half_character_is_shown(text: str) -> None:
    for tokenizer, special in ((BYTE_LEVEL, SPECIAL), (BYTE_FALLBACK, {0, 1, 2})):
        token_ids = tokenizer.encode(text, add_special_tokens=False).ids
        whole = tokenizer.decode(token_ids, skip_special_tokens=True)
        pieces = stream(HfDetokenizer(tokenizer, special), token_ids)
        assert "".join(pieces) == whole
        assert "".join(pieces).count(FFFD) == text.count(FFFD)
    assert BYTE_LEVEL.decode(BYTE_LEVEL.encode(text, add_special_tokens=False).ids) == text


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_random_bytes(data: bytes) -> None:
    assert "".join(stream(ByteDetokenizer(), list(data))) == data.decode(errors="replace")
    pieces = stream(HfDetokenizer(BYTE_LEVEL, SPECIAL), [byte_token(byte) for byte in data])
    assert "".join(pieces) == data.decode(errors="replace")


@pytest.mark.parametrize("size", [100, 101, 102, 103])
@pytest.mark.parametrize("unit", [b"\xff", b"\xf0\x9f\x98", b"\xe6\x9d", b"\x80\xf0\x9f"])
def test_long_runs_of_invalid_bytes(unit: bytes, size: int) -> None:
    """The window is cut inside such a run, and a character that begins in it still comes out whole."""
    data = (unit * size)[:size] + "😀é".encode()
    pieces = stream(HfDetokenizer(BYTE_LEVEL, SPECIAL), [byte_token(byte) for byte in data])
    assert "".join(pieces) == data.decode(errors="replace")
    assert all(any(pieces[place : place + 20]) for place in range(size - 20))  # it does not wait for the end


def test_a_character_appears_with_its_last_byte() -> None:
    data = "a😀b".encode()
    assert stream(HfDetokenizer(BYTE_LEVEL, SPECIAL), [byte_token(byte) for byte in data]) == [
        "a", "", "", "", "😀", "b", "",
    ]  # fmt: skip
    assert stream(ByteDetokenizer(), list(data)) == ["a", "", "", "", "😀", "b", ""]


def test_an_incomplete_character_is_flushed() -> None:
    data = "x東".encode()[:-1]
    assert stream(HfDetokenizer(BYTE_LEVEL, SPECIAL), [byte_token(byte) for byte in data]) == ["x", "", "", FFFD]
    assert stream(ByteDetokenizer(), list(data)) == ["x", "", "", FFFD]


def test_only_the_first_space_of_a_text_is_dropped() -> None:
    ids = [BYTE_FALLBACK.get_vocab()[token] for token in ("<s>", "▁w", "<s>", "▁w", "▁", "<0xC3>", "<0xA9>", "▁w")]
    assert stream(HfDetokenizer(BYTE_FALLBACK, {0, 1, 2}), ids) == ["", "w", "", " w", " ", "", "é", " w", ""]


def test_work_per_token_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the tokens are, including runs that have no text or never become valid."""
    for token_ids in ([1] * 500, [byte_token(0xFF)] * 500, BYTE_LEVEL.encode("the cache and " * 100).ids):
        widths: list[int] = []
        detokenizer = HfDetokenizer(BYTE_LEVEL, SPECIAL)
        decode = detokenizer._decode

        def counted(widths: list[int] = widths, detokenizer: HfDetokenizer = detokenizer) -> str:
            widths.append(len(detokenizer._window))
            return decode()  # noqa: B023 - called inside this turn of the loop only

        monkeypatch.setattr(detokenizer, "_decode", counted)
        stream(detokenizer, token_ids)
        assert max(widths) <= 19
        assert len(widths) <= 2 * len(token_ids) + 1
