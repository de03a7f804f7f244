"""Do token ids and text belong together as in transformers, whichever way the files of the model are written?"""

import json
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers

from coordinator.text import ByteText, HfText, NoText, Text
from tests.support.tiny_tokenizer import byte_fallback, byte_level, save_model
from transport.messages.client import ChatMessage

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATS = [
    [ChatMessage(role="user", content="hello")],
    [
        ChatMessage(role="system", content="Sei höflich. 東京"),
        ChatMessage(role="user", content="  naïve 😀 <b>&</b> \n"),
    ],
    [
        ChatMessage(role="user", content="the cache"),
        ChatMessage(role="assistant", content=""),
        ChatMessage(role="user", content="</s><|im_end|> <tool_call>"),
    ],
]


def as_dicts(chat: list[ChatMessage]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in chat]


@pytest.mark.parametrize("chat", CHATS)
def test_chat_equals_transformers(tmp_path: Path, chat: list[ChatMessage]) -> None:
    oracle, text = save_model(tmp_path, TEMPLATE), HfText(tmp_path)
    rendered = oracle.apply_chat_template(as_dicts(chat), tokenize=False, add_generation_prompt=True)
    assert text.render_chat(chat) == rendered
    encoded = oracle.apply_chat_template(as_dicts(chat), add_generation_prompt=True, return_dict=False)
    assert text.encode(text.render_chat(chat), add_special_tokens=False) == encoded
    assert encoded.count(oracle.bos_token_id) == 1  # the template's, no second one


def test_encoding_equals_transformers(tmp_path: Path) -> None:
    oracle, text = save_model(tmp_path, None), HfText(tmp_path)
    for prompt in ("", "hello", " the  cache\n", "naïve 東京 😀", "<|im_start|>user"):
        assert text.encode(prompt) == oracle(prompt)["input_ids"]
        assert text.encode(prompt)[0] == oracle.bos_token_id
        assert text.encode(prompt, add_special_tokens=False) == oracle(prompt, add_special_tokens=False)["input_ids"]
    assert text.vocab_size == len(oracle)


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    prompt = "the prefill worker computes"
    assert HfText(tmp_path).encode(prompt) == byte_level().encode(prompt).ids


def write(directory: Path, config: dict[str, Any], **files: str) -> HfText:
    byte_level().save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    for name, content in files.items():
        (directory / name.replace("__", ".")).write_text(content, encoding="utf-8")
    return HfText(directory)


def test_where_the_template_and_its_tokens_are_found(tmp_path: Path) -> None:
    chat = CHATS[0]
    config: dict[str, Any] = {"chat_template": "{{ eos_token }}config", "eos_token": "</s>"}
    assert write(tmp_path, config).render_chat(chat) == "</s>config"
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "default{{ bos_token }}"}]
    config = {"chat_template": named, "bos_token": {"content": "<s>", "special": True}, "eos_token": None}
    assert write(tmp_path, config).render_chat(chat) == "default<s>"
    assert write(tmp_path, config, chat_template__jinja="file ü{{ bos_token }}").render_chat(chat) == "file ü<s>"
    mapped = write(tmp_path, {}, special_tokens_map__json='{"bos_token": "<S>"}')
    assert mapped.render_chat(chat) == "file ü<S>"


def test_a_model_without_a_template_says_so(tmp_path: Path) -> None:
    for text in (write(tmp_path, {}), write(tmp_path, {"chat_template": [{"name": "rag", "template": "x"}]})):
        with pytest.raises(ValueError, match="no chat template: send a prompt"):
            text.render_chat(CHATS[0])
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="no chat template"):
        HfText(tmp_path).render_chat(CHATS[0])


def test_a_directory_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        HfText(tmp_path)
    with pytest.raises(ValueError, match="JSON object"):
        write(tmp_path, {}, special_tokens_map__json="[]", chat_template__jinja="x")


def test_streams_of_one_text_are_independent(tmp_path: Path) -> None:
    text = write(tmp_path, {})
    one, two = text.decoder(), text.decoder()
    shown = ["", ""]
    for first, second in zip_longest(text.encode("abc 東"), text.encode("京 xyz"), fillvalue=1):  # 1: </s>
        shown[0] += one.push(first)
        shown[1] += two.push(second)
    assert [shown[0] + one.flush(), shown[1] + two.flush()] == ["abc 東", "京 xyz"]


def test_special_tokens_have_no_text_in_an_answer_and_other_added_ones_do(tmp_path: Path) -> None:
    text = write(tmp_path, {})
    decoder = text.decoder()
    answer = text.encode("<tool_call>x<|im_end|></s>")
    assert [decoder.push(token_id) for token_id in answer] == ["", "<tool_call>", "x", "", ""]


def test_token_text(tmp_path: Path) -> None:
    text = write(tmp_path, {})
    prompt = "the <tool_call> cache</s>"
    assert "".join(text.token_text(token_id) for token_id in text.encode(prompt)) == "<s>" + prompt
    assert text.token_text(text.encode("東", add_special_tokens=False)[0])[-1:] in {"\ufffd", "東"}
    byte_fallback().save(str(tmp_path / "tokenizer.json"))
    text = HfText(tmp_path)
    assert [text.token_text(token_id) for token_id in text.encode("a worl")] == [" ", "a", " w", "o", "r", "l"]


@pytest.mark.parametrize("normalizer", [None, normalizers.NFC()])
def test_no_token_stands_for_more_characters_than_promised(
    tmp_path: Path, normalizer: normalizers.Normalizer | None
) -> None:
    tokenizer = byte_level()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    text = HfText(tmp_path)
    longest = max(map(len, tokenizer.get_vocab()))
    assert text.max_token_chars == (longest if normalizer is None else 4 * longest)
    composed = "\u1100\u1161\u11a8" * 50 + "\u03b1\u0313\u0300\u0345" * 50  # NFC makes one character of 3 and of 4
    for prompt in (" the prefill worker" * 50, "<|im_start|>" * 50, composed):
        assert len(prompt) <= len(text.encode(prompt, add_special_tokens=False)) * text.max_token_chars


@given(st.text())
def test_byte_text(prompt: str) -> None:
    text: Text = ByteText()
    assert text.encode(prompt) == list(prompt.encode())
    assert len(prompt) <= len(text.encode(prompt)) * text.max_token_chars
    assert max(text.encode(prompt), default=0) < text.vocab_size
    chat = [ChatMessage(role="system", content=prompt), ChatMessage(role="user", content="hi")]
    assert text.render_chat(chat) == f"system: {prompt}\nuser: hi\nassistant: "
    assert text.encode(text.render_chat(chat), add_special_tokens=False) == list(text.render_chat(chat).encode())
    decoder = text.decoder()
    assert "".join(map(decoder.push, text.encode(prompt))) + decoder.flush() == prompt


def test_byte_text_edges() -> None:
    assert [ByteText().token_text(token_id) for token_id in (97, 0xC3)] == ["a", "\ufffd"]
    with pytest.raises(ValueError, match="at least one message"):
        ByteText().render_chat([])


# --- grammars and bytes ----------------------------------------------------------------------------------------------


def test_a_grammar_that_can_be_followed_passes_and_another_is_explained(tmp_path: Path) -> None:
    save_model(tmp_path, None)
    text = HfText(tmp_path)
    text.check_grammar("start: /a+/")
    with pytest.raises(ValueError, match=r"cannot be used: .*missing"):
        text.check_grammar("start: missing")


def test_without_a_tokenizer_a_grammar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"vocab_size": 8}')
    texts: list[Text] = [ByteText(), NoText(tmp_path)]
    for text in texts:
        with pytest.raises(ValueError, match="leave"):
            text.check_grammar("start: /a+/")


def test_the_bytes_of_an_answer_are_those_of_its_tokens(tmp_path: Path) -> None:
    save_model(tmp_path, None)
    text = HfText(tmp_path)
    for sentence in ("the cache", "東京 😀\n"):
        ids = text.encode(sentence, add_special_tokens=False)
        assert b"".join(map(text.token_bytes, ids)) == sentence.encode()
    assert ByteText().token_bytes(0xE2) == b"\xe2"
    assert NoText(tmp_path).token_bytes(1) == b""
