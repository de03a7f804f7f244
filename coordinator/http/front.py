"""How does the HTTP front live inside the coordinator?

A client of `coordinator.service` like the ZeroMQ front: no second way into the machine. uvicorn serves on the loop that
is there already and installs no signal handler; the coordinator's timer drives what waits here.
"""

import asyncio
import contextlib
import math
import socket
from collections.abc import Callable, Generator

import uvicorn
from starlette.routing import Router

from coordinator.config import HttpConfig
from coordinator.http.connection import connections
from coordinator.http.counters import HttpCounters
from coordinator.http.gate import Access, Gate
from coordinator.http.generation import OpenAnswers, Patience
from coordinator.http.metrics import Exposition
from coordinator.http.rate import RateLimit
from coordinator.http.routes import Api
from coordinator.service import Service
from runtime.clock import Clock
from runtime.sockets import bound_socket
from transport.messages.client import WorkerStatus

LIMITS = (
    *("connections", "head_bytes", "head_timeout", "body_bytes", "body_timeout", "reader_stall"),
    *("rate", "queue", "n", "choices", "prompt_tokens", "output_tokens", "grammar"),
)
_LAST_WORDS_S = 2  # how long answers that have ended may take to reach their clients when the coordinator stops


class ListenFailed(Exception):
    """The address cannot be listened on; the text says what to change."""


class HttpFront:
    def __init__(
        self,
        config: HttpConfig,
        service: Service,
        clock: Clock,
        workers: Callable[[], tuple[WorkerStatus, ...]],
    ) -> None:
        self._socket = _listen(config.host, config.port)
        self.port: int = self._socket.getsockname()[1]
        self._clock = clock
        self._open_answers = OpenAnswers(Patience(config.limits.keep_alive_s, config.limits.stall_s), clock)
        counters = HttpCounters(limits=LIMITS)
        exposition = Exposition(service, counters, workers, config.metrics_compat)
        api = Api(service, config, self._open_answers, counters, exposition)
        counters.routes = frozenset(one.path for one in api.operations)
        gate = Gate(
            Router(api.routes(), redirect_slashes=False),
            Access(
                public=frozenset(one.path for one in api.operations if one.public),
                key_digests=config.api_key_digests,
                allowed_hosts=config.allowed_hosts,
            ),
            RateLimit(config.limits.requests_per_minute),
            counters,
            clock,
        )
        self._server = _Server(
            uvicorn.Config(
                gate,
                http=connections(config.limits, counters),  # type: ignore[arg-type]  # called like the class it makes
                ws="none",
                lifespan="off",
                loop="none",
                log_config=None,
                access_log=False,
                log_level="error",  # malformed requests are counted, not told one by one
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=math.ceil(config.limits.idle_timeout_s),
                timeout_graceful_shutdown=_LAST_WORDS_S,
                backlog=config.limits.max_connections,
            )
        )
        self._serving: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._serving = asyncio.get_running_loop().create_task(self._server.serve([self._socket]), name="http")

    @property
    def idle(self) -> bool:
        """No client waits for an answer."""
        return len(self._open_answers) == 0

    def tick(self, now: float) -> None:
        self._open_answers.tick(now)
        if self._serving is not None and self._serving.done():
            self._serving.result()  # raises what ended it
            raise AssertionError("the HTTP server ended by itself")

    async def stop(self) -> None:
        """Everybody who waits has been told why: let that reach them, then close."""
        self._server.should_exit = True
        if self._serving is not None:
            await self._serving


class _Server(uvicorn.Server):
    """Signals belong to `runtime.process`."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def _listen(host: str, port: int) -> socket.socket:
    """
    Raises:
        ListenFailed: the address is taken or is not one of this machine.
    """
    try:
        listener = bound_socket(host, port)
    except OSError as error:
        raise ListenFailed(
            f"cannot listen on {host} port {port}: {error.strerror}; choose another with --port"
        ) from error
    listener.setblocking(False)
    return listener
