"""How does a test get all routes of the HTTP front behind their gate, without a socket?"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.routing import Router
from starlette.types import ASGIApp

from coordinator.config import HttpConfig
from coordinator.http.counters import HttpCounters
from coordinator.http.front import LIMITS
from coordinator.http.gate import Access, Gate
from coordinator.http.generation import OpenAnswers, Patience
from coordinator.http.metrics import Exposition
from coordinator.http.rate import RateLimit
from coordinator.http.routes import Api, Operation
from coordinator.service import Service
from runtime.description import ModelInfo
from tests.support.asgi import CONFIG, Answer, Client, FrontText
from tests.support.scripted_server import ManualClock


@dataclass
class Front:
    gate: Gate
    counters: HttpCounters
    operations: tuple[Operation, ...]
    clock: ManualClock

    async def ask(self, method: str, path: str, *headers: tuple[bytes, bytes], body: bytes = b"") -> Answer:
        return await Client(method, path, [body], headers).ask(self.gate)


def front(
    keys: Sequence[str] = (),
    allowed_hosts: Sequence[str] | None = None,
    app: ASGIApp | None = None,
    requests_per_minute: float = 0.0,
) -> Front:
    """
    Args:
        app: stands behind the gate instead of the routes.
    """
    clock = ManualClock()
    service = Service(CONFIG, FrontText(), clock, lambda *_: None)
    service.model = ModelInfo(name="m", vocab_size=256, max_model_len=100, eos_token_ids=(4,))
    counters = HttpCounters(limits=LIMITS)
    answers = OpenAnswers(Patience(15.0, 30.0), clock)
    api = Api(service, HttpConfig(), answers, counters, Exposition(service, counters, lambda: (), ""))
    counters.routes = frozenset(one.path for one in api.operations)
    gate = Gate(
        app or Router(api.routes(), redirect_slashes=False),
        Access(
            public=frozenset(one.path for one in api.operations if one.public),
            key_digests=tuple(hashlib.sha256(key.encode()).hexdigest() for key in keys),
            allowed_hosts=None if allowed_hosts is None else tuple(allowed_hosts),
        ),
        RateLimit(requests_per_minute),
        counters,
        clock,
    )
    return Front(gate, counters, api.operations, clock)
