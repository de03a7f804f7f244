"""How does text become token ids, and token ids text?

Three implementations: `HfText` for a model directory, `NoText` for one without a tokenizer, `ByteText` for the fake
engine. Loaded once by the coordinator, which owns all text; read-only after that, so any thread may use them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import msgspec
from tokenizers import Tokenizer

from coordinator.chat_template import ChatTemplate
from coordinator.detokenizer import ByteDetokenizer, Detokenizer, HfDetokenizer, NoDetokenizer
from engine.grammar import GrammarCompiler, UnusableTokenizer
from engine.grammar_trial import GrammarTrial
from transport.messages.client import ChatMessage, ToolCall

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_MAX_COMPOSITION = 4
"""Characters that Unicode normalisation can turn into one (UAX 15: a decomposition has at most 4)."""

Tools = Sequence[Mapping[str, object]]
_NO_ARGUMENTS: Mapping[str, object] = MappingProxyType({})


class Text(Protocol):
    """What the coordinator knows of a model's text."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def max_token_chars(self) -> int:
        """The most characters of a text that one token stands for: a longer text than `max_model_len` times this many
        cannot fit, and is refused before anyone tokenises it."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids, with the model's special tokens (such as a first `<s>`) around them when asked.

        Takes about 0.2 us a character; the loop hands a long text to a thread.
        """
        ...

    @property
    def chat_template(self) -> str | None:
        """The source of the chat template, from which the form of tool calls is read; None without one."""
        ...

    @property
    def takes_tools(self) -> bool:
        """The chat template shows the model which functions it may call."""
        ...

    def render_chat(
        self, messages: Sequence[ChatMessage], tools: Tools = (), arguments: Mapping[str, object] = _NO_ARGUMENTS
    ) -> str:
        """The prompt text of a chat, up to where the assistant's answer begins; it holds the special tokens already.

        Args:
            tools: functions that the model may call, in the form of the OpenAI API.
            arguments: further variables of the template.

        Raises:
            ValueError: the model has no chat template, or its template refuses these messages.
        """
        ...

    def decoder(self, *, skip_special_tokens: bool = True) -> Detokenizer:
        """A fresh one, for the output of one request."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a whole sequence, special tokens included; U+FFFD for invalid bytes."""
        ...

    def token_text(self, token_id: int) -> str:
        """The text of one token inside a text, special tokens included; U+FFFD for half a character."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """What one token inside a text stands for; half a character keeps its bytes."""
        ...

    def check_grammar(self, grammar: str) -> None:
        """Find out whether a grammar can be followed, by building it in a process that may die of it.

        Blocks for milliseconds, the first one and a bad one for seconds: the loop hands it to a thread.

        Raises:
            ValueError: it cannot; the text says what to change.
        """
        ...


class HfText:
    """The tokenizer of a local model directory in Hugging Face form.

    Reads `tokenizer.json` and, where they are there, `tokenizer_config.json`, `special_tokens_map.json` and
    `chat_template.jinja`.

    Raises:
        FileNotFoundError: no `tokenizer.json`.
        ValueError: the chat template is broken.
    """

    def __init__(self, directory: Path) -> None:
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise FileNotFoundError(f"{directory} has no tokenizer.json: not a model directory with a fast tokenizer")
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = frozenset(token_id for token_id, token in added.items() if token.special)
        self._max_token_chars = _max_token_chars(self._tokenizer)
        self._anchor = self._tokenizer.encode("a", add_special_tokens=False).ids
        self._template = _chat_template(directory)
        self._name = directory.name
        # Any token can stand for the end here: what a model takes for it decides nothing about a grammar.
        end = (max(self._special, default=0),)
        self._trial = GrammarTrial(path, self.vocab_size, end)
        try:
            self._grammars: GrammarCompiler | None = GrammarCompiler(path, self.vocab_size, end)
        except UnusableTokenizer:
            self._grammars = None

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def max_token_chars(self) -> int:
        return self._max_token_chars

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        # Only the batch form lets go of the GIL, so that a thread can do this beside the loop; "fast" skips offsets.
        return self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids

    @property
    def chat_template(self) -> str | None:
        return None if self._template is None else self._template.source

    @property
    def takes_tools(self) -> bool:
        return self._template is not None and self._template.takes_tools

    def render_chat(
        self, messages: Sequence[ChatMessage], tools: Tools = (), arguments: Mapping[str, object] = _NO_ARGUMENTS
    ) -> str:
        if self._template is None:
            raise ValueError(f"the model {self._name} has no chat template: send a prompt instead of messages")
        if tools and not self._template.takes_tools:
            raise ValueError(f"the chat template of {self._name} takes no tools")
        return self._template.render([_for_template(message) for message in messages], tools, arguments)

    def decoder(self, *, skip_special_tokens: bool = True) -> Detokenizer:
        return HfDetokenizer(self._tokenizer, self._special if skip_special_tokens else frozenset())

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._decode(list(token_ids))

    def token_text(self, token_id: int) -> str:
        before = self._decode(self._anchor)  # decoders treat the first token of a text specially
        return self._decode([*self._anchor, token_id])[len(before) :]

    def token_bytes(self, token_id: int) -> bytes:
        return self.token_text(token_id).encode() if self._grammars is None else self._grammars.token_bytes(token_id)

    def check_grammar(self, grammar: str) -> None:
        if (error := self._trial.check(grammar)) is not None:
            raise ValueError(f"the grammar cannot be used: {error}")

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)


class ByteText:
    """The text of the fake engine: a token is a byte of UTF-8, a chat is lines of `role: content`."""

    vocab_size = 256
    max_token_chars = 1
    chat_template = None
    takes_tools = False

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:  # noqa: ARG002 - it has none
        return list(text.encode())

    def render_chat(
        self,
        messages: Sequence[ChatMessage],
        tools: Tools = (),
        arguments: Mapping[str, object] = _NO_ARGUMENTS,  # noqa: ARG002 - it has none
    ) -> str:
        if not messages:
            raise ValueError("a chat has at least one message")
        if tools:
            raise ValueError("the mock engine calls no tools")
        return "".join(f"{message.role}: {message.content}\n" for message in messages) + "assistant: "

    def decoder(self, *, skip_special_tokens: bool = True) -> Detokenizer:  # noqa: ARG002 - it has none
        return ByteDetokenizer()

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(token_ids).decode(errors="replace")

    def token_text(self, token_id: int) -> str:
        return bytes((token_id,)).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return bytes((token_id,))

    def check_grammar(self, grammar: str) -> None:  # noqa: ARG002 - as the others
        raise ValueError("the mock engine follows no grammar: serve a model, or leave the grammar out")


class NoText:
    """A model directory without a tokenizer, as benchmarks of big shapes use: prompts are token ids, answers too."""

    max_token_chars = 1
    chat_template = None
    takes_tools = False

    def __init__(self, directory: Path) -> None:
        config = _json_object(directory / "config.json")
        self.vocab_size = int(str(config.get("vocab_size", 0)))
        self._name = directory.name

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:  # noqa: ARG002 - as the others
        raise ValueError(f"the model {self._name} has no tokenizer.json: send prompt_token_ids instead of text")

    def render_chat(
        self,
        messages: Sequence[ChatMessage],  # noqa: ARG002 - as the others
        tools: Tools = (),  # noqa: ARG002
        arguments: Mapping[str, object] = _NO_ARGUMENTS,  # noqa: ARG002
    ) -> str:
        raise ValueError(f"the model {self._name} has no tokenizer.json: send prompt_token_ids instead of messages")

    def decoder(self, *, skip_special_tokens: bool = True) -> Detokenizer:  # noqa: ARG002 - as the others
        return NoDetokenizer()

    def decode(self, token_ids: Sequence[int]) -> str:  # noqa: ARG002 - as the others
        return ""

    def token_text(self, token_id: int) -> str:  # noqa: ARG002 - as the others
        return ""

    def token_bytes(self, token_id: int) -> bytes:  # noqa: ARG002 - as the others
        return b""

    def check_grammar(self, grammar: str) -> None:  # noqa: ARG002 - as the others
        raise ValueError(f"the model {self._name} has no tokenizer.json, so no grammar can be followed: leave it out")


def open_text(directory: Path | None) -> Text:
    """The text side of a model directory; None is the fake engine."""
    if directory is None:
        return ByteText()
    return HfText(directory) if (directory / "tokenizer.json").is_file() else NoText(directory)


def _for_template(message: ChatMessage) -> dict[str, object]:
    """The form that templates expect: a key is there only if it means something, and arguments are values."""
    entry: dict[str, object] = {"role": message.role, "content": message.content}
    if message.name is not None:
        entry["name"] = message.name
    if message.tool_call_id is not None:
        entry["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        entry["tool_calls"] = [
            {"type": "function", "id": call.id, "function": {"name": call.name, "arguments": _arguments(call)}}
            for call in message.tool_calls
        ]
    return entry


def _arguments(call: ToolCall) -> object:
    """
    Raises:
        ValueError: they are not JSON.
    """
    try:
        return msgspec.json.decode(call.arguments)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"the arguments of the call of {call.name!r} are not JSON: {error}") from error


def _max_token_chars(tokenizer: Tokenizer) -> int:
    longest = max(map(len, tokenizer.get_vocab(with_added_tokens=True)))
    return longest if tokenizer.normalizer is None else longest * _MAX_COMPOSITION


def _chat_template(directory: Path) -> ChatTemplate | None:
    """`chat_template.jinja`, or else the template in `tokenizer_config.json`, where several have names."""
    config = _json_object(directory / "tokenizer_config.json")
    file = directory / "chat_template.jinja"
    source = file.read_text(encoding="utf-8") if file.is_file() else config.get("chat_template")
    if isinstance(source, list):
        source = next((entry["template"] for entry in source if entry["name"] == "default"), None)
    if not isinstance(source, str):
        return None
    return ChatTemplate(source, _special_tokens({**_json_object(directory / "special_tokens_map.json"), **config}))


def _special_tokens(config: Mapping[str, object]) -> dict[str, str]:
    """The tokens that templates know by name; a file holds each as a string or as an object with its `content`."""
    tokens = {name: config.get(name) for name in _SPECIAL_TOKENS}
    texts = {name: token.get("content") if isinstance(token, dict) else token for name, token in tokens.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _json_object(path: Path) -> dict[str, object]:
    """
    Raises:
        ValueError: the file is there and does not hold a JSON object.
    """
    if not path.is_file():
        return {}
    value = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(value, dict):
        return value
    raise ValueError(f"{path} does not hold a JSON object")
