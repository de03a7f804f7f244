"""Are the bytes of every message what the other side expects, and is everything else a `ProtocolError`?

Golden bytes hold the wire still; the `msgpack` package, which knows nothing of our types, reads the same bytes. Bytes
that are no message, by accident or on purpose, must never cause another exception or much memory.
"""

import json
import math
import tracemalloc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import msgpack  # type: ignore[import-untyped]  # it has no stubs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.messages import GOLDEN, LINKS, REQUEST
from transport import codec
from transport.codec import Codec
from transport.errors import ProtocolError
from transport.messages import common
from transport.messages.client import Submit
from transport.messages.common import MAX_PROMPT_TOKENS, PROTOCOL_VERSION, Message

RAISE = (
    "the wire has changed: raise PROTOCOL_VERSION, add a line to its history, run `python -m tests.support.messages`"
)
EXAMPLES = [(direction, example) for direction, link in LINKS.items() for example in link.examples]
NAMES = [f"{direction}: {type(example).__name__}" for direction, example in EXAMPLES]
WRONG_TYPE = msgpack.ExtType(5, b"no field of any message is one of these")
VALUES: tuple[Any, ...] = (None, True, -1, 1 << 63, 0.5, "", "x" * 3000, b"\xff", [], [[]], {}, {1: 2})
BILLIONS = {"array": b"\xdd\xff\xff\xff\xff", "map": b"\xdf\xff\xff\xff\xff", "str": b"\xdb\xff\xff\xff\xff"}

every_message = pytest.mark.parametrize(("direction", "example"), EXAMPLES, ids=NAMES)
every_direction = pytest.mark.parametrize("direction", LINKS)


def decoder(direction: str) -> Codec[Message]:
    made: Codec[Message] = LINKS[direction].codec()
    return made


def encode(example: Message) -> bytes:
    return msgspec.msgpack.encode(example)


def fields(example: Message) -> dict[Any, Any]:
    """The message as `msgpack` reads it."""
    value = msgpack.unpackb(encode(example), strict_map_key=False)
    assert isinstance(value, dict)
    return value


def places(value: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], object]]:
    """Every value inside a message, by the way to it."""
    if path:
        yield path, value
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from places(item, (*path, key))


def changed(value: Any, path: tuple[Any, ...], new: object) -> Any:
    """A copy of a message with another value at `path`."""
    if not path:
        return new
    items = value.items() if isinstance(value, dict) else enumerate(value)
    copied = {key: changed(item, path[1:], new) if key == path[0] else item for key, item in items}
    return copied if isinstance(value, dict) else list(copied.values())


def refused(direction: str, data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decoder(direction).decode(data)


def outcome(direction: str, data: bytes) -> Message | None:
    """The message, or None for a `ProtocolError`; anything else is raised."""
    try:
        return decoder(direction).decode(data)
    except ProtocolError:
        return None


# --- golden bytes ----------------------------------------------------------------------------------------------------


@every_direction
def test_there_is_an_example_of_every_message(direction: str) -> None:
    link = LINKS[direction]
    assert {type(example) for example in link.examples} == set(get_args(link.union))


def test_the_golden_bytes_are_of_this_protocol_version() -> None:
    assert json.loads(GOLDEN.read_text())["protocol"] == PROTOCOL_VERSION, RAISE


def test_every_protocol_version_has_a_line_of_history() -> None:
    assert common.__doc__ is not None
    history = [line.split()[0] for line in common.__doc__.splitlines() if line.startswith("  ")]
    assert history == [str(version) for version in range(1, PROTOCOL_VERSION + 1)]


@every_direction
def test_no_golden_message_is_missing_or_left_over(direction: str) -> None:
    golden: Mapping[str, Mapping[str, str]] = json.loads(GOLDEN.read_text())["messages"]
    assert golden.keys() == LINKS.keys(), RAISE
    assert golden[direction].keys() == {type(example).__name__ for example in LINKS[direction].examples}, RAISE


@every_message
def test_the_bytes_are_golden(direction: str, example: Message) -> None:
    golden = json.loads(GOLDEN.read_text())["messages"][direction][type(example).__name__]
    assert encode(example).hex() == golden, RAISE
    assert decoder(direction).decode(bytes.fromhex(golden)) == example, RAISE


@every_message
def test_another_msgpack_reads_the_same(direction: str, example: Message) -> None:
    if isinstance(example, Submit):
        expected = {"type": "Submit", "id": example.id, "request": _builtins(REQUEST)}
    else:
        expected = _builtins(example)
    assert fields(example) == expected
    assert fields(example)["type"] == type(example).__name__


def _builtins(value: msgspec.Struct) -> dict[Any, Any]:
    built = _lists(msgspec.to_builtins(value, builtin_types=(bytes,), str_keys=False))
    assert isinstance(built, dict)
    return built


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value


@every_message
def test_another_msgpack_is_understood(direction: str, example: Message) -> None:
    assert _same(decoder(direction).decode(msgpack.packb(fields(example))), example)


def _same(one: Message, other: Message) -> bool:
    if isinstance(one, Submit) and isinstance(other, Submit):
        return one.id == other.id and codec.generate_request(one.request) == codec.generate_request(other.request)
    return one == other


# --- what is not a message -------------------------------------------------------------------------------------------


def checked_places(example: Message) -> list[tuple[tuple[Any, ...], object]]:
    """All values of a message but those of a `GenerateRequest`, which is looked at later and on its own."""
    opaque = isinstance(example, Submit)
    return [(path, value) for path, value in places(fields(example)) if not (opaque and path[0] == "request")]


@every_message
def test_an_unknown_field_is_refused_wherever_it_is(direction: str, example: Message) -> None:
    message = fields(example)
    maps = [(), *(path for path, value in checked_places(example) if isinstance(value, dict))]
    for path in maps:
        inner: Any = message
        for key in path:
            inner = inner[key]
        refused(direction, msgpack.packb(changed(message, path, {**inner, "surprise": 1})))


@every_message
def test_a_value_of_another_type_is_refused_wherever_it_is(direction: str, example: Message) -> None:
    for path, _ in checked_places(example):
        refused(direction, msgpack.packb(changed(fields(example), path, WRONG_TYPE)))


@every_message
def test_any_value_anywhere_is_a_message_or_an_error(direction: str, example: Message) -> None:
    for path, _ in places(fields(example)):
        for value in VALUES:
            outcome(direction, msgpack.packb(changed(fields(example), path, value)))


@every_message
def test_a_missing_field_is_refused_or_has_a_default(direction: str, example: Message) -> None:
    message = fields(example)
    required = {field.name for field in msgspec.structs.fields(example) if field.required} | {"type"}
    for name in message:
        data = msgpack.packb({key: value for key, value in message.items() if key != name})
        assert (outcome(direction, data) is None) == (name in required)


@every_message
def test_no_number_is_nan_or_infinite(direction: str, example: Message) -> None:
    """Log probabilities may be: a token that cannot be drawn has one of minus infinity."""
    for path, value in checked_places(example):
        if isinstance(value, float) and not {"logprobs", "token"} & set(path) and path[0] != "steps":
            for bad in (math.nan, math.inf, -math.inf):
                refused(direction, msgpack.packb(changed(fields(example), path, bad)))


@pytest.mark.parametrize(
    ("direction", "name", "path", "value"),
    [
        ("client -> coordinator", "Submit", ("id",), ""),
        ("client -> coordinator", "Submit", ("id",), "x" * 65),
        ("coordinator -> client", "Delta", ("token_ids",), [1 << 31]),
        ("coordinator -> client", "Delta", ("index",), -1),
        ("worker -> coordinator", "Hello", ("role",), "coordinator"),
        ("worker -> coordinator", "Hello", ("pool", "total_pages"), 0),
        ("worker -> coordinator", "Hello", ("pool", "page_tokens"), 4097),
        ("worker -> coordinator", "Hello", ("peer", "worker_id"), ""),
        ("worker -> coordinator", "Hello", ("peer", "address"), b"x" * 4097),
        ("worker -> coordinator", "Hello", ("peer", "epoch"), 1 << 63),
        ("worker -> coordinator", "Heartbeat", ("free_pages",), -1),
        ("worker -> coordinator", "SelfTestDone", ("transfer_id",), 1 << 40),
        ("worker -> coordinator", "SelfTestDone", ("gigabytes_per_s",), -0.5),
        ("worker -> coordinator", "Tokens", ("steps", 0, 0), -1),
        ("worker -> coordinator", "Tokens", ("steps", 0, 2, 0), 1 << 31),
        ("worker -> coordinator", "PrefillReleased", ("stages", "compute_s"), -1e-9),
        ("worker -> coordinator", "PrefillReleased", ("error",), "x" * 2001),
        ("coordinator -> worker", "Prefill", ("request_id",), 1 << 63),
        ("coordinator -> worker", "Prefill", ("prompt",), [-1]),
        ("coordinator -> worker", "Prefill", ("prompt",), [0] * (MAX_PROMPT_TOKENS + 1)),
        ("coordinator -> worker", "Prefill", ("sampling", "temperature"), 100.5),
        ("coordinator -> worker", "Admit", ("pages",), 0),
        ("coordinator -> worker", "SelfTest", ("pages",), 0),
        ("coordinator -> launcher", "WorkerProgress", ("fraction",), 1.5),
        ("kv port <-> kv port", "Offer", ("runs",), [0]),
        ("kv port <-> kv port", "Trailer", ("note",), b"x" * ((1 << 16) + 1)),
    ],
)
def test_a_value_out_of_its_range_is_refused(direction: str, name: str, path: tuple[Any, ...], value: object) -> None:
    (example,) = [one for one in LINKS[direction].examples if type(one).__name__ == name]
    refused(direction, msgpack.packb(changed(fields(example), path, value)))


@every_message
def test_every_truncation_is_refused(direction: str, example: Message) -> None:
    data = encode(example)
    for length in range(len(data)):
        refused(direction, data[:length])


@every_message
def test_bytes_behind_a_message_are_refused(direction: str, example: Message) -> None:
    refused(direction, encode(example) + b"\xc0")


@every_direction
def test_a_message_of_another_link_is_refused(direction: str) -> None:
    own = {type(example).__name__ for example in LINKS[direction].examples}
    strangers = [example for _, example in EXAMPLES if type(example).__name__ not in own]
    assert strangers
    for example in strangers:
        refused(direction, encode(example))


# --- bytes that mean harm --------------------------------------------------------------------------------------------


@every_direction
@given(data=st.binary(max_size=200))
def test_random_bytes_are_no_message(direction: str, data: bytes) -> None:
    assert outcome(direction, data) is None


@given(
    st.sampled_from(EXAMPLES), st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 255)), min_size=1, max_size=4)
)
def test_a_damaged_message_is_a_message_or_an_error(
    example: tuple[str, Message], damage: list[tuple[int, int]]
) -> None:
    direction, message = example
    data = bytearray(encode(message))
    for position, flip in damage:
        data[position % len(data)] ^= flip
    outcome(direction, bytes(data))


@every_direction
@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1x", b"\xdc\x00\x01", b"\x81\xa4type"], ids=bytes.hex)
def test_deep_nesting_is_refused(direction: str, opening: bytes) -> None:
    refused(direction, opening * 100_000 + b"\xc0")


@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1x"], ids=bytes.hex)
def test_deep_nesting_in_what_is_not_looked_at_yet_is_an_error_at_the_latest_when_it_is(opening: bytes) -> None:
    nested = opening * 100_000 + b"\xc0"
    data = msgpack.packb({"type": "Submit", "id": "r1", "request": None})[:-1] + nested
    message = outcome("client -> coordinator", data)
    assert message is None or isinstance(message, Submit)
    with pytest.raises(ProtocolError):
        codec.generate_request(nested)


@every_message
@pytest.mark.parametrize("kind", BILLIONS)
def test_a_promise_of_four_billion_items_takes_no_memory(direction: str, example: Message, kind: str) -> None:
    message = fields(example)
    packer = msgpack.Packer()
    tracemalloc.start()
    try:
        refused(direction, BILLIONS[kind])
        for name in message:
            data = packer.pack_map_header(len(message))
            for key, value in message.items():
                data += packer.pack(key) + (BILLIONS[kind] if key == name else packer.pack(value))
            refused(direction, data)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


# --- the request inside a Submit -------------------------------------------------------------------------------------


def request_with(path: tuple[Any, ...], value: object) -> bytes:
    whole = msgpack.unpackb(msgspec.msgpack.encode(REQUEST), strict_map_key=False)
    data = msgpack.packb(changed(whole, path, value))
    assert isinstance(data, bytes)
    return data


def test_a_request_is_decoded_on_its_own() -> None:
    assert codec.generate_request(msgspec.msgpack.encode(REQUEST)) == REQUEST
    assert codec.generate_request(request_with(("prompt",), None)).prompt is None


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("surprise",), 1, "surprise"),
        (("sampling", "surprise"), 1, "surprise"),
        (("prompt",), 7, "prompt"),
        (("prompt_token_ids",), [-1], "prompt_token_ids"),
        (("messages", 0, "role"), "pirate", "role"),
        (("timeout_s",), 0.0, "timeout_s"),
        (("timeout_s",), math.inf, "timeout_s"),
        (("sampling", "max_tokens"), 0, "max_tokens"),
        (("sampling", "temperature"), math.nan, "temperature"),
        (("sampling", "temperature"), -0.5, "temperature"),
        (("sampling", "top_p"), 0.0, "top_p"),
        (("sampling", "top_p"), 1.5, "top_p"),
        (("sampling", "repetition_penalty"), 0.0, "repetition_penalty"),
        (("sampling", "logit_bias"), {-1: 0.0}, "logit_bias"),
        (("sampling", "logit_bias"), {1: math.nan}, "logit_bias"),
        (("sampling", "stop"), [""], "stop"),
        (("sampling", "stop"), ["x"] * 17, "stop"),
        (("sampling", "logprobs"), 21, "logprobs"),
        (("sampling", "seed"), 1 << 63, "seed"),
    ],
)
def test_a_bad_request_names_the_field(path: tuple[Any, ...], value: object, named: str) -> None:
    data = request_with(path[:-1], {**_at(path[:-1]), path[-1]: value})
    with pytest.raises(ProtocolError, match=named):
        codec.generate_request(data)


def _at(path: tuple[Any, ...]) -> dict[Any, Any]:
    value: Any = msgpack.unpackb(msgspec.msgpack.encode(REQUEST), strict_map_key=False)
    for key in path:
        value = value[key]
    assert isinstance(value, dict)
    return value


@given(st.binary(max_size=200))
def test_random_bytes_are_no_request(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        codec.generate_request(data)


def test_an_error_is_short_whatever_the_bytes_were() -> None:
    with pytest.raises(ProtocolError) as caught:
        codec.generate_request(msgpack.packb({"x" * 100_000: 1}))
    assert len(str(caught.value)) <= 300


def test_the_golden_file_lies_beside_this_test() -> None:
    assert GOLDEN.parent == Path(__file__).parent
