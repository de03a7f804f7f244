"""Do options of the command line become a safe configuration of the HTTP front, or an error that says what to do?"""

import hashlib
import os
import socket
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from coordinator.config import HttpConfig, HttpLimits, RequestLimits
from launch.http_options import base_url, check_port, http_config, split_limits
from launch.ports import port_holder


def config(host: str = "127.0.0.1", **given: Any) -> HttpConfig:
    options: dict[str, Any] = {"api_keys": (), "allowed_hosts": (), "limits": HttpLimits(), "metrics_compat": "none"}
    return http_config(host, 8000, **options | given)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def test_keys_are_known_by_their_hash_only() -> None:
    made = config(api_keys=["secret-one", " secret-two\n"])
    assert made.api_key_digests == tuple(hashlib.sha256(key).hexdigest() for key in (b"secret-one", b"secret-two"))
    assert b"secret" not in msgspec.json.encode(made)


@pytest.mark.parametrize("keys", [[""], [" "], ["good", "\n"]])
def test_an_empty_key_is_refused(keys: list[str]) -> None:
    with pytest.raises(ValueError, match="API key is empty"):
        config(api_keys=keys)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com", "", "fe80::1"])
def test_an_open_door_needs_a_key(host: str) -> None:
    with pytest.raises(ValueError, match="API key"):
        config(host)
    assert config(host, api_keys=["k"]).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_loopback_needs_none(host: str) -> None:
    assert config(host).api_key_digests == ()


def test_without_a_key_only_names_of_this_machine_are_meant() -> None:
    assert config().allowed_hosts is not None
    assert set(config("127.0.0.9").allowed_hosts or ()) == {"localhost", "127.0.0.1", "[::1]", "127.0.0.9"}
    assert config(api_keys=["k"]).allowed_hosts is None
    assert config(allowed_hosts=["gpu.lan"]).allowed_hosts == ("gpu.lan",)
    assert config(api_keys=["k"], allowed_hosts=["gpu.lan"]).allowed_hosts == ("gpu.lan",)


def test_compatibility_of_metrics() -> None:
    assert config().metrics_compat == ""
    assert config(metrics_compat="vllm").metrics_compat == "vllm"


def test_limits_are_read_by_their_names() -> None:
    http, requests = split_limits(["max_n=3", "stall-s=1.5", " max-body-bytes = 100 ", "max_output_tokens=7"])
    assert http == HttpLimits(max_n=3, stall_s=1.5, max_body_bytes=100)
    assert requests == RequestLimits(max_output_tokens=7)
    assert split_limits([]) == (HttpLimits(), RequestLimits())
    assert config(limits=http).limits == http


@pytest.mark.parametrize(
    "limit",
    [
        *("nope=1", "=1", "max_n=0", "max_n=-1", "max_n=x", "max_n=1.5", "max_n=", "max_connections=99999999999"),
        *("stall_s=0", "stall_s=nan", "stall_s=inf", "idle_timeout_s=inf", "idle_timeout_s=1e300"),
    ],
)
def test_a_wrong_limit_is_refused_with_the_names_of_all(limit: str) -> None:
    with pytest.raises(ValueError, match="--limit") as error:
        split_limits([limit])
    for field in (*msgspec.structs.fields(HttpLimits), *msgspec.structs.fields(RequestLimits)):
        assert field.name in str(error.value)


def test_a_limit_without_a_value_is_refused() -> None:
    with pytest.raises(ValueError, match="NAME=VALUE"):
        split_limits(["max_n"])


def test_a_port_that_is_taken_names_who_has_it(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    with pytest.raises(ValueError, match=f"port {port} is in use by .*pid {os.getpid()}.*--port"):
        check_port("127.0.0.1", port)
    assert str(os.getpid()) in str(port_holder(port))


def test_a_free_port_passes_and_stays_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)
    assert port_holder(port) is None
    check_port("127.0.0.1", 0)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cannot listen on 192\.0\.2\.1"):
        check_port("192.0.2.1", 18_123)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("localhost", "http://localhost:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("::1", "http://[::1]:8000"),
        ("fe80::1", "http://[fe80::1]:8000"),
        ("gpu.lan", "http://gpu.lan:8000"),
    ],
)
def test_clients_on_this_machine_find_the_api(host: str, url: str) -> None:
    assert base_url(host, 8000) == url


@pytest.mark.parametrize(
    ("typed", "known"),
    [("a.example", "a.example"), ("a.example:8000", "a.example"), ("::1", "[::1]"), ("[::1]:8000", "[::1]")],
)
def test_a_host_is_known_by_its_name_alone(typed: str, known: str) -> None:
    assert config(allowed_hosts=[typed]).allowed_hosts == (known,)
