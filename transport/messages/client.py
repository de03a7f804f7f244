"""What do a client and the coordinator say to each other?

A client sends `Submit` and gets any number of `Delta`, then exactly one `Done` or `Failed`, with the same `id`. Token
indices of one request are contiguous and start at 0. A client that says nothing for the time in `Welcome` is taken for
gone and its requests are cancelled, so it sends `Ping` when it has nothing else to say.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Raw, Struct

from runtime.flight import Part
from runtime.params import FinishReason, SamplingParams
from runtime.stages import Ledger
from runtime.tokens import TokenLogprobs
from transport.messages.common import (
    MAX_TEXT_CHARS,
    Count,
    Message,
    Name,
    Process,
    Reason,
    RequestId,
    Role,
    Seconds,
    TokenIds,
)

FailureCode = Literal[
    "invalid_request", "model_not_found", "loading", "overloaded", "draining", "timeout", "worker_lost", "internal"
]
ClientRequestId = Annotated[str, Meta(min_length=1, max_length=64)]
MAX_LEDGERS = 1000
"""Answers that the coordinator remembers."""
LEDGERS_AT_ONCE = 100
"""Answers of one message: half a millisecond to encode, in which no token moves."""
Text = Annotated[str, Meta(max_length=MAX_TEXT_CHARS)]


class ToolCall(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A function that the assistant called in an earlier turn; `arguments` is a JSON object as text."""

    id: Annotated[str, Meta(max_length=256)]
    name: Annotated[str, Meta(max_length=256)]
    arguments: Text


class ChatMessage(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    role: Literal["system", "user", "assistant", "tool"]
    content: Text = ""
    name: Annotated[str, Meta(max_length=256)] | None = None
    tool_calls: Annotated[tuple[ToolCall, ...], Meta(max_length=128)] = ()
    tool_call_id: Annotated[str, Meta(max_length=256)] | None = None  # of the call that a message of role tool answers


class GenerateRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Exactly one of the three prompts is given; `prompt_token_ids` go to the model as they are.

    `tools` and `template_arguments` are for the chat template: descriptions of functions in the form of the OpenAI API,
    and variables by name. What goes to a template was a JSON value; it is never looked at here.
    """

    prompt: Text | None = None
    prompt_token_ids: TokenIds | None = None
    messages: Annotated[tuple[ChatMessage, ...], Meta(max_length=4096)] | None = None
    tools: Annotated[tuple[dict[str, Any], ...], Meta(max_length=128)] = ()
    template_arguments: Annotated[dict[str, Any], Meta(max_length=64)] = {}
    add_special_tokens: bool = True  # around `prompt`
    truncate_prompt_tokens: Annotated[int, Meta(ge=1, lt=1 << 31)] | None = None  # keep the last so many
    skip_special_tokens: bool = True  # in the text of the answer
    include_stop_string: bool = False  # in the text of the answer
    model: Annotated[str, Meta(max_length=512)] | None = None  # None: whatever model is served
    sampling: SamplingParams = SamplingParams()
    timeout_s: Annotated[float, Meta(gt=0.0, le=86400.0)] | None = None


# --- client -> coordinator -------------------------------------------------------------------------------------------


class ClientHello(Message, frozen=True):
    protocol: int


class Submit(Message, frozen=True):
    """`request` is decoded as a `GenerateRequest` on its own, so that a bad one fails one request and not the link."""

    id: ClientRequestId
    request: Raw


class Cancel(Message, frozen=True):
    id: ClientRequestId


class Ping(Message, frozen=True):
    pass


class AskStatus(Message, frozen=True):
    """Answered by one `CellStatus`."""


class AskLedgers(Message, frozen=True):
    """Answered by one `Ledgers`, soon; a newer question takes the place of one that is still open.

    `skip`: leave out so many of the newest answers, which the client has. Answers that end meanwhile push others back:
    one may come twice, but none is missed.
    """

    skip: Annotated[int, Meta(ge=0, lt=MAX_LEDGERS)] = 0


class AskTimeline(Message, frozen=True):
    """What has every process of the cell done in the last `last_s` seconds?

    Answered by any number of `TimelinePart`, then one `TimelineEnd`.
    """

    last_s: Seconds


ToCoordinator = ClientHello | Submit | Cancel | Ping | AskStatus | AskLedgers | AskTimeline

# --- coordinator -> client -------------------------------------------------------------------------------------------


class Welcome(Message, frozen=True):
    protocol: int
    model: str
    max_model_len: int
    prefill_workers: Count
    decode_workers: Count
    client_timeout_s: Seconds


class Goodbye(Message, frozen=True):
    """The coordinator will not serve this client (for example: another protocol version)."""

    reason: Reason


class Delta(Message, frozen=True):
    """Tokens `index` .. `index + len(token_ids) - 1` and the text that became certain with them.

    Text is held back while it ends in half a code point or may be the start of a stop string, so it can lag the tokens.
    """

    id: ClientRequestId
    index: Count
    token_ids: TokenIds
    text: str
    logprobs: tuple[TokenLogprobs, ...] | None = None


class Done(Message, frozen=True):
    """The end of a request. `text` is what was still held back. `stop_reason` is the stop string or stop token id."""

    id: ClientRequestId
    finish_reason: FinishReason
    text: str
    prompt_tokens: Count
    completion_tokens: Count
    ledger: Ledger
    stop_reason: str | int | None = None


class Failed(Message, frozen=True):
    """The end of a request that could not be served. `code` says who has to change something."""

    id: ClientRequestId
    code: FailureCode
    message: Reason
    param: str | None = None


class Pong(Message, frozen=True):
    pass


class WorkerStatus(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A worker's pages and requests, as its last heartbeat told them; free + reserved + quarantined = total."""

    worker_id: Name
    role: Role
    pid: Count
    total_pages: Count
    free_pages: Count
    reserved_pages: Count
    quarantined_pages: Count
    running: Count
    waiting: Count


class CellStatus(Message, frozen=True):
    workers: tuple[WorkerStatus, ...]
    queued: Count  # requests that wait for pages or for a prefill worker
    in_flight: Count  # requests that a client waits for, the queued ones included


class AnswerLedger(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of an answer that has ended, whoever asked for it."""

    request: RequestId  # the coordinator's number, as in the logs
    id: ClientRequestId  # the client's: not more than one of this client's, but others may have used it too
    ended_s: Seconds  # so long ago
    prompt_tokens: Count
    tokens: Count
    ledger: Ledger


class Ledgers(Message, frozen=True):
    """Of the newest answers but those that were left out, the newest last."""

    answers: Annotated[tuple[AnswerLedger, ...], Meta(max_length=LEDGERS_AT_ONCE)]


class TimelinePart(Message, frozen=True):
    """A part of what one process has recorded.

    Its ages count back from the moment at which that process took its recording, which was `delay_s` after the
    coordinator was asked, give or take `uncertainty_s`.
    """

    process: Name
    role: Process
    pid: Count
    delay_s: Seconds
    uncertainty_s: Seconds  # half of the round trip
    reaches_s: Seconds | None = None  # how far back the recording goes, if older events were dropped
    events: Part = ()


class TimelineEnd(Message, frozen=True):
    """Every process has told all, but for the workers in `missing`; `error`: why there is no timeline at all."""

    missing: Annotated[tuple[Name, ...], Meta(max_length=4096)] = ()
    error: Reason | None = None


ToClient = Welcome | Goodbye | Delta | Done | Failed | Pong | CellStatus | Ledgers | TimelinePart | TimelineEnd
