"""What may the body of an HTTP request say?

The fields of the OpenAI API that this server acts on, and the extensions of vLLM that its users and benchmark tools
send. Bounds are those of `SamplingParams`. A null means the same as a field that is not there. Keys that stand nowhere
here are accepted, because clients add them freely, and reported once to the log; keys whose meaning is known but not
provided are refused (`unsupported`), because ignoring them would answer another question than the one that was asked.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from coordinator.http.errors import ApiError
from runtime.params import (
    MAX_STOP_STRINGS,
    LogitBias,
    MaxTokens,
    MinP,
    MinTokens,
    Penalty,
    RepetitionPenalty,
    Seed,
    StopString,
    StopTokenIds,
    Temperature,
    TokenId,
    TopLogprobs,
    TopP,
)
from transport.messages.common import MAX_PROMPT_TOKENS

Stop = StopString | Annotated[tuple[StopString, ...], Meta(max_length=MAX_STOP_STRINGS)]
TopK = Annotated[int, Meta(ge=-1, lt=1 << 31)]  # vLLM's clients say -1 for off


class StreamOptions(Struct, frozen=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class JsonSchema(Struct, frozen=True):
    name: Annotated[str, Meta(max_length=256)] | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(Struct, frozen=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(Struct, frozen=True, forbid_unknown_fields=True):
    """vLLM's form; exactly one of them."""

    json: dict[str, Any] | str | None = None
    regex: str | None = None
    choice: Annotated[tuple[str, ...], Meta(min_length=1, max_length=1024)] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class Request(Struct, frozen=True, kw_only=True):
    """What both generation routes take."""

    model: Annotated[str, Meta(max_length=512)] | None = None
    max_tokens: MaxTokens | None = None
    n: Annotated[int, Meta(ge=1, le=1024)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    stop: Stop | None = None
    seed: Seed | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: LogitBias | None = None
    response_format: ResponseFormat | None = None
    # vLLM's extensions
    structured_outputs: StructuredOutputs | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    repetition_penalty: RepetitionPenalty | None = None
    min_tokens: MinTokens | None = None
    ignore_eos: bool | None = None
    stop_token_ids: StopTokenIds | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=1, lt=1 << 31)] | None = None
    return_token_ids: bool | None = None


class ContentPart(Struct, frozen=True):
    type: str
    text: str | None = None


class Function(Struct, frozen=True):
    name: Annotated[str, Meta(min_length=1, max_length=256)]
    arguments: str = "{}"


class CalledTool(Struct, frozen=True):
    id: Annotated[str, Meta(max_length=256)]
    function: Function
    type: Literal["function"] = "function"


class Message(Struct, frozen=True):
    """`content` is text, or parts of which only text is taken."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | tuple[ContentPart, ...] | None = None
    name: Annotated[str, Meta(max_length=256)] | None = None
    tool_calls: Annotated[tuple[CalledTool, ...], Meta(max_length=128)] | None = None
    tool_call_id: Annotated[str, Meta(max_length=256)] | None = None


class ToolFunction(Struct, frozen=True):
    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct, frozen=True):
    function: ToolFunction
    type: Literal["function"] = "function"


class NamedFunction(Struct, frozen=True):
    name: Annotated[str, Meta(max_length=256)]


class NamedTool(Struct, frozen=True):
    function: NamedFunction
    type: Literal["function"] = "function"


class ChatRequest(Request, frozen=True, kw_only=True):
    """A conversation, and how it is to go on."""

    messages: Annotated[tuple[Message, ...], Meta(min_length=1, max_length=4096)]
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    tools: Annotated[tuple[Tool, ...], Meta(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: Annotated[dict[str, Any], Meta(max_length=64)] | None = None


TokenList = Annotated[tuple[TokenId, ...], Meta(max_length=MAX_PROMPT_TOKENS)]


class CompletionRequest(Request, frozen=True, kw_only=True):
    """`prompt` is a text, token ids, or a list of either."""

    prompt: str | Annotated[tuple[str | TokenId | TokenList, ...], Meta(min_length=1, max_length=MAX_PROMPT_TOKENS)]
    echo: bool | None = None
    logprobs: TopLogprobs | None = None
    add_special_tokens: bool | None = None


class TokenizeRequest(Struct, frozen=True, kw_only=True):
    """A prompt or a conversation."""

    model: Annotated[str, Meta(max_length=512)] | None = None
    prompt: str | None = None
    messages: Annotated[tuple[Message, ...], Meta(min_length=1, max_length=4096)] | None = None
    tools: Annotated[tuple[Tool, ...], Meta(max_length=128)] | None = None
    chat_template_kwargs: Annotated[dict[str, Any], Meta(max_length=64)] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Struct, frozen=True, kw_only=True):
    """Token ids of the served model."""

    tokens: TokenList
    model: Annotated[str, Meta(max_length=512)] | None = None


_Keys = Annotated[dict[str, msgspec.Raw], Meta(max_length=256)]  # whatever a client adds, it is not that many

IGNORED = frozenset(
    (
        *("user", "metadata", "store", "service_tier", "safety_identifier"),
        *("prompt_cache_key", "prompt_cache_retention", "cache_salt", "request_id"),
    )
)
"""Keys that change nothing about the answer of this server: labels, billing, and caches between requests, of which
it has none."""

_UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "suffix": (),
    "best_of": (1,),
    "prompt_logprobs": (),
    "allowed_token_ids": ((),),
    "bad_words": ((),),
    "logits_processors": ((),),
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "priority": (0,),
    "functions": ((),),
    "function_call": ("none",),
    "modalities": (("text",),),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "chat_template": (),
    "continue_final_message": (False,),
    "add_generation_prompt": (True,),
    "documents": ((),),
    "kv_transfer_params": (),
    "vllm_xargs": ({},),
    "mm_processor_kwargs": ({},),
}
"""Keys whose meaning is known and not provided here, with the values that ask for nothing; null is always one."""

_LOCATED = re.compile(r"(.*) - at `(?:key` in `)?\$\.?(.*)`", re.DOTALL)
R = TypeVar("R", ChatRequest, CompletionRequest, TokenizeRequest, DetokenizeRequest)


def decode(body: bytes, form: type[R]) -> tuple[R, tuple[str, ...]]:
    """The body as `form`, and the names of the keys that nobody here knows.

    Raises:
        ApiError: 400, naming the parameter.
    """
    try:
        keys = msgspec.json.decode(body, type=_Keys)
        _refuse_unsupported(keys)
        request = msgspec.json.decode(body, type=form)
    except msgspec.ValidationError as error:
        raise _invalid(error) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ApiError(400, f"the body is not valid JSON: {error}", "invalid_json") from error
    except RecursionError as error:
        raise ApiError(400, "the body is nested too deeply", "invalid_json") from error
    known = form.__struct_encode_fields__  # `msgspec.structs.fields` evaluates every annotation anew
    return request, tuple(key for key in keys if key not in known and key not in IGNORED)


def _refuse_unsupported(keys: Mapping[str, msgspec.Raw]) -> None:
    for key in keys.keys() & _UNSUPPORTED.keys():
        value = msgspec.json.decode(keys[key])
        harmless = _UNSUPPORTED[key]
        if value is None or any(_same(value, other) for other in harmless):
            continue
        raise ApiError(400, f"{key} is not supported by this server: leave it out", "unsupported_parameter", key)


def _same(value: object, other: object) -> bool:
    if isinstance(value, list):
        return tuple(value) == other
    return type(value) is type(other) and value == other


def _invalid(error: msgspec.ValidationError) -> ApiError:
    """msgspec says where: `Expected `int`, got `str` - at `$.max_tokens``, or `... - at `key` in `$.logit_bias``."""
    located = _LOCATED.fullmatch(str(error))
    message, path = (located[1], located[2]) if located is not None else (str(error), "")
    missing = re.search(r"missing required field `(\w+)`", message)
    if missing is not None:
        path = f"{path}.{missing[1]}".removeprefix(".")
    named = f"{path}: {message}" if path else message
    return ApiError(400, named, "invalid_value", path or None)


def names(keys: Iterable[str]) -> list[str]:
    """Keys that a client made up, as they may stand in a log."""
    return [key[:64].encode("unicode_escape").decode() for key in keys]
