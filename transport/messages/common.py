"""Which version of the wire is this, and which types do all links share?

History of PROTOCOL_VERSION:
  1  first version
  2  requests carry what the OpenAI API has: tools, template arguments, choices about text, a grammar; Serve
  3  a cell tells what it has done (timelines, recordings); ledgers tell every stage, and can be asked for
  4  a self-test says in which memory its pages are, and a link whether they go through the host's
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

PROTOCOL_VERSION = 4

MAX_PROMPT_TOKENS = 1 << 20
MAX_TEXT_CHARS = 8 << 20
MAX_MESSAGE_BYTES = 64 << 20
"""Larger than the longest prompt as token ids; ZeroMQ drops what is larger before we see it."""

Name = Annotated[str, Meta(min_length=1, max_length=128)]
MAX_REASON_CHARS = 2000
Reason = Annotated[str, Meta(max_length=MAX_REASON_CHARS)]
Seconds = Annotated[float, Meta(ge=0.0, le=1e9)]
GigabytesPerSecond = Annotated[float, Meta(ge=0.0, le=1e6)]
Count = Annotated[int, Meta(ge=0, lt=1 << 48)]
Epoch = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
RequestId = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
TransferId = Annotated[int, Meta(ge=0, lt=1 << 40)]
"""Unique for the life of a coordinator: a request that is tried again gets a new one. 40 bits, for the UCX tag."""
Role = Literal["prefill", "decode"]
ROLES: tuple[Role, ...] = ("prefill", "decode")
Process = Literal["coordinator", "prefill", "decode"]
TokenIds = Annotated[tuple[Annotated[int, Meta(ge=0, lt=1 << 31)], ...], Meta(max_length=MAX_PROMPT_TOKENS)]


class Message(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Base of every message that is a map on the wire; the tag is the class name."""


class KvPeer(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to reach a worker's KV port. The epoch is drawn at the worker's boot: a restarted worker is another peer."""

    worker_id: Name
    epoch: Epoch
    address: Annotated[bytes, Meta(max_length=4096)]
    host_id: Annotated[str, Meta(max_length=128)]  # equal on one host; UCX may then use shared memory
