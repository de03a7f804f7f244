"""What do the published traces and a user's file of prompts say?

The readers take lines and give records in the order of the file, or raise `TraceInvalid` with the number of the line;
only `lines_of` opens a file. The formats:

- Azure LLM inference traces 2023 (Patel et al., "Splitwise", ISCA '24): CSV of time stamp, prompt and answer tokens.
- Mooncake (Qin et al., FAST '25): JSONL of milliseconds, lengths, and one id per 512 prompt tokens; prompts that begin
  alike share their first ids.
- Prompts: JSONL with `prompt` and, if it is known, `output_tokens`, as the custom data set of `vllm bench` has it.
"""

import csv
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct

TRACE_BLOCK_TOKENS = 512
"""Prompt tokens per hash id in Mooncake's files."""

_AZURE_HEADER = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]
_SECOND_CHARS = len("2023-11-16 18:17:03")

_Length = Annotated[int, Meta(ge=1, le=1 << 24)]
_Line = TypeVar("_Line")
_Record = TypeVar("_Record")
_BlockId = Annotated[int, Meta(ge=0, lt=1 << 48)]


class TraceInvalid(ValueError):
    """A line of the file is not what its format allows."""


class TraceRecord(Struct, frozen=True, kw_only=True):
    at_s: float  # since an origin of the trace's own
    prompt_tokens: _Length
    output_tokens: _Length
    blocks: tuple[int, ...] = ()  # one id per TRACE_BLOCK_TOKENS, the last one for what is left


class PromptRecord(Struct, frozen=True, kw_only=True):
    prompt: Annotated[str, Meta(min_length=1)]
    output_tokens: _Length | None = None  # None: the file does not say


class _MooncakeLine(Struct, frozen=True):
    timestamp: Annotated[float, Meta(ge=0.0)]  # milliseconds
    input_length: _Length
    output_length: _Length
    hash_ids: tuple[_BlockId, ...] = ()


def lines_of(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        yield from file


def read_azure(lines: Iterable[str]) -> Iterator[TraceRecord]:
    rows = csv.reader(lines)
    header = next(rows, None)
    if header != _AZURE_HEADER:
        raise TraceInvalid(f"line 1: expected {','.join(_AZURE_HEADER)}")

    def record(row: list[str]) -> TraceRecord:
        stamp, prompt, output = row
        whole = datetime.fromisoformat(stamp[:_SECOND_CHARS]) - datetime.min
        seconds = whole.total_seconds() + float(f"0{stamp[_SECOND_CHARS:]}")  # ten millionths, which datetime cuts
        return _checked(TraceRecord(at_s=seconds, prompt_tokens=int(prompt), output_tokens=int(output)))

    return _in_order(_each(enumerate(rows, start=2), record))


def read_mooncake(lines: Iterable[str]) -> Iterator[TraceRecord]:
    decoder = msgspec.json.Decoder(_MooncakeLine)

    def record(text: str) -> TraceRecord:
        line = decoder.decode(text)
        if line.hash_ids and len(line.hash_ids) != -(-line.input_length // TRACE_BLOCK_TOKENS):
            raise ValueError(f"{len(line.hash_ids)} hash ids for {line.input_length} tokens")
        return TraceRecord(
            at_s=line.timestamp / 1000,
            prompt_tokens=line.input_length,
            output_tokens=line.output_length,
            blocks=line.hash_ids,
        )

    return _in_order(_each(_numbered(lines), record))


def read_prompts(lines: Iterable[str]) -> Iterator[PromptRecord]:
    return (record for _, record in _each(_numbered(lines), msgspec.json.Decoder(PromptRecord).decode))


def _numbered(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    return ((number, line) for number, line in enumerate(lines, start=1) if line.strip())


def _each(lines: Iterable[tuple[int, _Line]], record: Callable[[_Line], _Record]) -> Iterator[tuple[int, _Record]]:
    for number, line in lines:
        try:
            yield number, record(line)
        except (ValueError, msgspec.MsgspecError) as error:
            raise TraceInvalid(f"line {number}: {error}") from error


def _in_order(records: Iterable[tuple[int, TraceRecord]]) -> Iterator[TraceRecord]:
    """Sorting would hide that a file is not what it says."""
    last = -float("inf")
    for number, record in records:
        if record.at_s < last:
            raise TraceInvalid(f"line {number}: it arrives before the line above it")
        last = record.at_s
        yield record


def _checked(record: TraceRecord) -> TraceRecord:
    """Constructors of structs check nothing; bounds are checked where bytes become values."""
    return msgspec.convert(msgspec.to_builtins(record), TraceRecord)
