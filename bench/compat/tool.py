"""What does a tool that others wrote have to tell, so that it can be compared with the server?

Pure types: what is asked of a tool, what it reports and what it writes down of each request. One module per tool fills
them (`guidellm`, `aiperf`, `langchain`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from msgspec import Struct

ALLOWED_SHARE, ALLOWED_S = 0.02, 0.002
PROMPT_TOKENS, OUTPUT_TOKENS = 64, 16

Quantity = Literal["ttft", "tpot", "itl", "e2e", "latency"]
"""As launch.evaluation.definitions has them; `latency` lasts until the answer's connection is free again."""

Statistic = str
"""`mean`, or `p` and a percentage."""


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
    output_spread: int = 0  # standard deviation of the tokens of an answer


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
        tpot_s: of the means of the requests' gaps.
    """

    requests: int
    prompt_tokens: int
    completion_tokens: int
    ttft_s: float | None = None
    itl_s: float | None = None
    tpot_s: float | None = None
    calls: tuple[Call, ...] = ()


class Record(Struct, frozen=True, kw_only=True):
    """One request as the tool wrote it down; None and nothing: it did not.

    Attributes:
        name: by which it is found on the wire: its X-Request-ID, or the id of its answer.
        gaps_s: between chunks with content.
    """

    name: str
    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    latency_s: float | None = None
    gaps_s: tuple[float, ...] = ()


class Account(Struct, frozen=True, kw_only=True):
    """What a tool wrote down of its run: what it reports as a result, and the requests one by one.

    Attributes:
        statistics: in seconds; only those defined as ours are.
    """

    statistics: dict[Quantity, dict[Statistic, float]]
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Tool:
    """
    Attributes:
        requirement: what pip installs.
        package: whose version is shown.
        command: the line to type; the first word is a program of the tool's virtual environment.
        read: what the run that has ended in this folder reports; the text is its standard output.
        account: the same of the times of its requests; None: it measures none.
        environment: variables that it needs.
        definitions: how it defines TTFT and ITL.
        notes: what to know before it is run against a server of one's own.
    """

    name: str
    requirement: str
    package: str
    command: Callable[[Load], list[str]]
    read: Callable[[Path, str], Counted]
    account: Callable[[Path], Account] | None
    environment: dict[str, str]
    definitions: str
    notes: str


def agree(reported_s: float | None, server_s: float | None) -> bool | None:
    """Whether two times are the same within what is allowed; None if one was not measured."""
    if reported_s is None or server_s is None:
        return None
    return abs(reported_s - server_s) <= max(ALLOWED_S, ALLOWED_SHARE * server_s)
