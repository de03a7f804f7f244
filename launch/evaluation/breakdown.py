"""Which parts make up the time that a client waited for one request?

Pure. The parts lie one behind the other on the request's critical path. Each is a duration that one process measured on
its own clock; clocks are never compared, so what nobody measured, the ways between the processes, is the rest.
"""

from msgspec import Struct


class Part(Struct, frozen=True, kw_only=True):
    stage: str
    seconds: float
    where: str  # "client", "coordinator", a worker's id


class Breakdown(Struct, frozen=True, kw_only=True):
    """Of E2E: send -> last token at the client."""

    parts: tuple[Part, ...]  # in the order of time
    e2e_s: float
    residual_s: float  # E2E less the sum of the parts
