"""What does the HTTP front count of its own?

Plain numbers that the front writes and `coordinator.http.metrics` shows. Labels come from sets that this program knows:
a route is a template such as `/v1/models/{model}`, never a path that a client made up.
"""

from dataclasses import dataclass, field

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER = "other"


@dataclass(slots=True)
class HttpCounters:
    """One instance per front; `routes` and `limits` bound what the labels can be."""

    routes: frozenset[str] = frozenset()  # the templates that the front serves
    limits: tuple[str, ...] = ()  # names of the limits that the front enforces
    requests: dict[tuple[str, str, int], int] = field(default_factory=dict)  # by route, method and status
    limit_hits: dict[str, int] = field(default_factory=dict)  # refused because of a limit, by its name
    open_connections: int = 0
    open_streams: int = 0  # answers that are being streamed
    disconnects: int = 0  # clients that left before the end of their answer

    def __post_init__(self) -> None:
        self.limit_hits = dict.fromkeys(self.limits, 0) | self.limit_hits

    def answered(self, route: str | None, method: str, status: int) -> None:
        """A response has been sent or its status line has; `route` is None where no route matched."""
        known_route = route if route is not None and route in self.routes else OTHER
        key = (known_route, method if method in METHODS else OTHER, status)
        self.requests[key] = self.requests.get(key, 0) + 1

    def limit_hit(self, limit: str) -> None:
        """Something was refused because of a limit.

        Raises:
            KeyError: the limit is not one of `limits`.
        """
        self.limit_hits[limit] += 1
