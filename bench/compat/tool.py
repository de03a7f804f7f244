"""What does a tool that others wrote have to tell, so that it can be compared with the server?

Pure types: what is asked of a tool, what it reports, and what the server counted meanwhile. One module per tool fills
them (`guidellm`, `aiperf`, `langchain`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from msgspec import Struct

ALLOWED_SHARE, ALLOWED_S = 0.02, 0.002
PROMPT_TOKENS, OUTPUT_TOKENS = 64, 16


@dataclass(frozen=True, slots=True)
class Load:
    """One run of a tool. The folder that it runs in is its own."""

    url: str  # without /v1
    model: str
    tokenizer: str  # directory of the model
    concurrency: int
    requests: int
    prompt_tokens: int = PROMPT_TOKENS  # of the text, without the chat template
    output_tokens: int = OUTPUT_TOKENS


class Call(Struct, frozen=True, kw_only=True):
    """One thing that a client library can do, and what came of it."""

    name: str
    outcome: str
    ok: bool


class Counted(Struct, frozen=True, kw_only=True):
    """What a tool reports, or what the server counted. Times are means; None: not measured.

    Attributes:
        ttft_s: of all requests.
        itl_s: of all gaps between tokens.
    """

    requests: int
    prompt_tokens: int
    completion_tokens: int
    ttft_s: float | None = None
    itl_s: float | None = None
    calls: tuple[Call, ...] = ()


@dataclass(frozen=True, slots=True)
class Tool:
    """
    Attributes:
        requirement: what pip installs.
        package: whose version is shown.
        command: the line to type; the first word is a program of the tool's virtual environment.
        read: what the run that has ended in this folder reports; the text is its standard output.
        environment: variables that it needs.
        definitions: how it defines TTFT and ITL.
        notes: what to know before it is run against a server of one's own.
    """

    name: str
    requirement: str
    package: str
    command: Callable[[Load], list[str]]
    read: Callable[[Path, str], Counted]
    environment: dict[str, str]
    definitions: str
    notes: str


class Run(Struct, frozen=True, kw_only=True):
    """One run of one tool."""

    tool: str
    version: str
    concurrency: int
    command: str
    reported: Counted
    server: Counted

    @property
    def tokens_agree(self) -> bool:
        ours, theirs = self.server, self.reported
        return (ours.requests, ours.prompt_tokens, ours.completion_tokens) == (
            theirs.requests,
            theirs.prompt_tokens,
            theirs.completion_tokens,
        )


def agree(reported_s: float | None, server_s: float | None) -> bool | None:
    """Whether two times are the same within what is allowed; None if one was not measured."""
    if reported_s is None or server_s is None:
        return None
    return abs(reported_s - server_s) <= max(ALLOWED_S, ALLOWED_SHARE * server_s)
