"""Which generation requests does an HTTP request ask for?

Pure. Turns the OpenAI API's fields into `GenerateRequest`s, one per prompt, and keeps what the answer's form needs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from coordinator.http.constraints import Constraint
from coordinator.http.errors import ApiError
from coordinator.http.requests import (
    ChatRequest,
    CompletionRequest,
    Message,
    Request,
    Tool,
)
from coordinator.http.tools import ToolChoice, tool_choice
from runtime.params import SamplingParams
from transport.messages.client import ChatMessage, GenerateRequest, ToolCall

_COMPLETION_TOKENS = 16  # the OpenAI API's default for completions


@dataclass(frozen=True, slots=True)
class Asked:
    """An HTTP request for generation. Choice number `i` of the answer is sample `i % n` of prompt `i // n`."""

    requests: tuple[GenerateRequest, ...]
    n: int
    stream: bool
    include_usage: bool
    continuous_usage: bool
    return_token_ids: bool
    echo: bool
    logprobs: bool
    tools: tuple[Tool, ...] = ()  # that the model may call; one only if the client named it
    tool_choice: ToolChoice = "none"
    parallel_tool_calls: bool = True

    @property
    def choices(self) -> int:
        return len(self.requests) * self.n


@dataclass(frozen=True, slots=True)
class AskLimits:
    max_n: int  # answers to one prompt
    max_choices: int  # answers that one HTTP request may ask for


def chat(body: ChatRequest, constraint: Constraint | None, limits: AskLimits) -> Asked:
    """
    Args:
        constraint: what the answer has to match, as `coordinator.http.constraints` made it of the body.

    Raises:
        ApiError: 400, naming the parameter.
    """
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", "invalid_value", "top_logprobs")
    _check_count(body, 1, limits)
    choice, tools = tool_choice(body)
    request = GenerateRequest(
        messages=messages(body.messages),
        tools=as_template_tools(body.tools or ()) if choice != "none" else (),
        template_arguments=body.chat_template_kwargs or {},
        sampling=_sampling(
            body,
            max_tokens=body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens,
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            grammar=None if constraint is None else constraint.grammar,
        ),
        **_common(body),
    )
    return _asked(
        body,
        (request,),
        logprobs=bool(body.logprobs),
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=body.parallel_tool_calls is not False,
    )


def completion(body: CompletionRequest, constraint: Constraint | None, limits: AskLimits) -> Asked:
    """
    Raises:
        ApiError: 400, naming the parameter.
    """
    if body.echo and body.logprobs is not None:
        raise ApiError(400, "echo with logprobs (of the prompt) is not supported", "unsupported_parameter", "echo")
    max_tokens = body.max_tokens if body.max_tokens is not None else _COMPLETION_TOKENS
    grammar = None if constraint is None else constraint.grammar
    sampling = _sampling(body, max_tokens=max_tokens, logprobs=body.logprobs, grammar=grammar)
    special = body.add_special_tokens is not False
    texts = prompts(body.prompt)
    _check_count(body, len(texts), limits)  # a body has room for a million prompts
    requests = tuple(
        GenerateRequest(
            prompt=prompt if isinstance(prompt, str) else None,
            prompt_token_ids=None if isinstance(prompt, str) else prompt,
            add_special_tokens=special,
            sampling=sampling,
            **_common(body),
        )
        for prompt in texts
    )
    return _asked(body, requests, logprobs=body.logprobs is not None, echo=bool(body.echo))


def prompts(prompt: str | Sequence[str | int | Sequence[int]]) -> list[str | tuple[int, ...]]:
    """One entry per prompt: a text, token ids, a list of texts or a list of lists of token ids.

    Raises:
        ApiError: the list mixes them.
    """
    if isinstance(prompt, str):
        return [prompt]
    kinds = {type(part) for part in prompt}  # one pass: there may be a million of them
    if kinds <= {int}:
        return [cast(tuple[int, ...], prompt)]
    if kinds in ({str}, {tuple}):
        return list(cast(Sequence[str | tuple[int, ...]], prompt))
    raise ApiError(
        400,
        "prompt: a list holds texts, token ids, or lists of token ids, not several of these",
        "invalid_value",
        "prompt",
    )


def messages(given: Sequence[Message]) -> tuple[ChatMessage, ...]:
    """
    Raises:
        ApiError: a message has content that is not text, or none.
    """
    return tuple(_message(index, message) for index, message in enumerate(given))


def as_template_tools(tools: Sequence[Tool]) -> tuple[dict[str, Any], ...]:
    """The form of the OpenAI API, which is what chat templates expect, without what the client left out."""
    return tuple(
        {
            "type": "function",
            "function": {key: value for key, value in msgspec.to_builtins(tool.function).items() if value is not None},
        }
        for tool in tools
    )


def _message(index: int, message: Message) -> ChatMessage:
    where = f"messages[{index}]"
    if message.content is None and not message.tool_calls:
        raise ApiError(400, f"{where} has no content", "invalid_value", f"{where}.content")
    if message.role == "tool" and message.tool_call_id is None:
        raise ApiError(400, f"{where} of role tool has no tool_call_id", "invalid_value", f"{where}.tool_call_id")
    return ChatMessage(
        role="system" if message.role == "developer" else message.role,
        content=_text(where, message),
        name=message.name,
        tool_calls=tuple(
            ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
            for call in message.tool_calls or ()
        ),
        tool_call_id=message.tool_call_id,
    )


def _text(where: str, message: Message) -> str:
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    for number, part in enumerate(message.content):
        if part.type != "text" or part.text is None:
            path = f"{where}.content[{number}]"
            raise ApiError(400, f"{path} is of type {part.type!r}; this server takes text", "unsupported_content", path)
    return "\n".join(part.text or "" for part in message.content)


def _common(body: Request) -> dict[str, Any]:
    return {
        "model": body.model,
        "truncate_prompt_tokens": body.truncate_prompt_tokens,
        "skip_special_tokens": body.skip_special_tokens is not False,
        "include_stop_string": bool(body.include_stop_str_in_output),
    }


def _sampling(body: Request, **given: object) -> SamplingParams:
    """`SamplingParams` has the defaults: a field that the client left out is left out here."""
    named: dict[str, Any] = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": None if body.top_k is None else max(body.top_k, 0),
        "min_p": body.min_p,
        "repetition_penalty": body.repetition_penalty,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "logit_bias": body.logit_bias,
        "seed": body.seed,
        "min_tokens": body.min_tokens,
        "ignore_eos": body.ignore_eos,
        "stop": (body.stop,) if isinstance(body.stop, str) else body.stop,
        "stop_token_ids": body.stop_token_ids,
        **given,
    }
    return SamplingParams(**{name: value for name, value in named.items() if value is not None})


def _check_count(body: Request, prompt_count: int, limits: AskLimits) -> None:
    n = body.n or 1
    if n > limits.max_n:
        message = f"n is {n}; this server gives at most {limits.max_n} answers"
        raise ApiError(400, message, "invalid_value", "n", limit="n")
    if n * prompt_count > limits.max_choices:
        asked = f"{prompt_count} prompts with n={n} ask for {n * prompt_count} answers"
        message = f"{asked}; this server gives at most {limits.max_choices}"
        raise ApiError(400, message, "invalid_value", "prompt", limit="choices")


def _asked(body: Request, requests: tuple[GenerateRequest, ...], **form: Any) -> Asked:  # noqa: ANN401 - fields of `Asked`
    options = body.stream_options
    if options is not None and not body.stream:
        raise ApiError(400, "stream_options needs stream: true", "invalid_value", "stream_options")
    return Asked(
        requests=requests,
        n=body.n or 1,
        stream=bool(body.stream),
        include_usage=options is not None and bool(options.include_usage),
        continuous_usage=options is not None and bool(options.continuous_usage_stats),
        return_token_ids=bool(body.return_token_ids),
        **{"echo": False, **form},
    )
