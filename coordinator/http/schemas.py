"""What do the bodies of answers look like?

The shapes of the OpenAI API as its clients read them; a field that is UNSET is not on the wire. Extensions of vLLM:
`stop_reason`, `token_ids`, `prompt_token_ids`, `root` and `max_model_len`.
"""

from typing import Literal

from msgspec import UNSET, Struct, UnsetType, field


class Usage(Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


# --- chat ------------------------------------------------------------------------------------------------------------


class TopLogprob(Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct, frozen=True):
    content: list[TokenLogprob]


class CalledFunction(Struct, frozen=True):
    name: str
    arguments: str


class ToolCallItem(Struct, frozen=True):
    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class ToolCallDelta(Struct, frozen=True):
    index: int
    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class AssistantMessage(Struct, frozen=True):
    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    tool_calls: list[ToolCallItem] | UnsetType = UNSET


class ChatChoice(Struct, frozen=True):
    index: int
    message: AssistantMessage
    finish_reason: str | None
    stop_reason: str | int | None
    logprobs: ChatLogprobs | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(Struct, frozen=True):
    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"
    prompt_token_ids: list[int] | UnsetType = UNSET


class ChatDelta(Struct, frozen=True):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChatChunkChoice(Struct, frozen=True):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatChunk(Struct, frozen=True):
    id: str
    created: int
    model: str
    choices: list[ChatChunkChoice]
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    usage: Usage | UnsetType = UNSET


# --- completions -----------------------------------------------------------------------------------------------------


class TextLogprobs(Struct, frozen=True):
    """One entry per token in each list; `text_offset` counts characters of the answer."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(Struct, frozen=True):
    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class TextCompletion(Struct, frozen=True):
    """A whole answer, and a chunk of a streamed one."""

    id: str
    created: int
    model: str
    choices: list[TextChoice]
    object: Literal["text_completion"] = "text_completion"
    usage: Usage | UnsetType = UNSET


# --- everything else -------------------------------------------------------------------------------------------------


class ErrorDetail(Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(Struct, frozen=True):
    error: ErrorDetail


class Model(Struct, frozen=True):
    id: str
    created: int
    root: str
    max_model_len: int
    object: Literal["model"] = "model"
    owned_by: Literal["kvrelay"] = "kvrelay"
    parent: None = None
    permission: list[str] = field(default_factory=list)


class ModelList(Struct, frozen=True):
    data: list[Model]
    object: Literal["list"] = "list"


class Tokens(Struct, frozen=True):
    """Of `/tokenize`."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(Struct, frozen=True):
    prompt: str


class Version(Struct, frozen=True):
    version: str


class HealthBody(Struct, frozen=True):
    status: str
