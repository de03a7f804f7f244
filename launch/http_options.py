"""How do the choices on the command line become the configuration of the HTTP front?

API keys are hashed here and go no further. The address is tried before anything else starts, so that a port that is
taken is known within the first moment, and by whom.
"""

import hashlib
import ipaddress
from collections.abc import Sequence
from typing import Literal

import msgspec

from coordinator.config import HttpConfig, HttpLimits, RequestLimits, without_port
from launch.ports import port_holder
from runtime.sockets import bound_socket

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


def http_config(
    host: str,
    port: int,
    *,
    api_keys: Sequence[str],
    allowed_hosts: Sequence[str],
    limits: HttpLimits,
    metrics_compat: Literal["none", "vllm"],
) -> HttpConfig:
    """
    Args:
        allowed_hosts: of the Host header; none given: any with an API key, the names of this machine without one.

    Raises:
        ValueError: the options contradict each other, with what to change.
    """
    if any(not key.strip() for key in api_keys):
        raise ValueError("an API key is empty")
    asked = tuple(_as_host(name) for name in allowed_hosts)
    names = asked or (None if api_keys else (*_LOOPBACK_NAMES, _as_host(host)))
    return HttpConfig(
        host=host,
        port=port,
        api_key_digests=tuple(hashlib.sha256(key.strip().encode()).hexdigest() for key in api_keys),
        allowed_hosts=names,
        metrics_compat="" if metrics_compat == "none" else metrics_compat,
        limits=limits,
    )


def check_port(host: str, port: int) -> None:
    """
    Raises:
        ValueError: somebody else listens there, and who.
    """
    if port == 0:
        return
    try:
        bound_socket(host, port).close()
    except OSError as error:
        holder = port_holder(port)
        why = f"cannot listen on {host} port {port}: {error.strerror}"
        if holder is not None:
            why = f"port {port} is in use by {holder.name} (pid {holder.pid})"
        raise ValueError(f"{why}; choose another with --port, or any free one with --port 0") from error


def base_url(host: str, port: int) -> str:
    """Where clients on this machine find the API."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
    return f"http://{f'[{shown}]' if _is_ipv6(shown) else shown}:{port}"


def _as_host(name: str) -> str:
    """A host as the gate compares it: `[::1]` in brackets, and no port behind it."""
    return f"[{name}]" if _is_ipv6(name) else without_port(name)


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


def split_limits(settings: Sequence[str]) -> tuple[HttpLimits, RequestLimits]:
    """`NAME=VALUE` each; names as in the two structures.

    Raises:
        ValueError: no such limit, or no such value.
    """
    given: dict[str, str] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"--limit {setting}: say NAME=VALUE")
        given[name.strip().replace("-", "_")] = value.strip()
    http, requests = ({field.name for field in msgspec.structs.fields(form)} for form in (HttpLimits, RequestLimits))
    try:
        unknown = given.keys() - http - requests
        if unknown:
            raise ValueError(f"there is no {', '.join(sorted(unknown))}")
        return (
            msgspec.convert({name: given[name] for name in given.keys() & http}, HttpLimits, strict=False),
            msgspec.convert({name: given[name] for name in given.keys() & requests}, RequestLimits, strict=False),
        )
    except ValueError as error:  # msgspec's own are ValueErrors, too
        raise ValueError(f"--limit: {error}; the limits are {', '.join(sorted(http | requests))}") from error
