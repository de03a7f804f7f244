"""What does the tap add to a request?

The same request to a cell with the mock engine, whose steps take a fixed time, directly and through a tap, in turn (A B
B A); the client is a bare socket in a process of its own. The difference is one more process to be woken for each
piece.
"""

from urllib.parse import urlsplit

import msgspec
import numpy as np
from msgspec import Struct

from bench.cell import cell, mock_options
from bench.child import started
from bench.compat.bare import Waited, Ways
from bench.compat.tap import tap
from launch.config import CellOptions

_ROUNDS = 200
_TOKENS = 4
_STEP_S = 0.005


class Added(Struct, frozen=True, kw_only=True):
    """Seconds through the tap less seconds without it, of neighbouring requests: quartiles."""

    rounds: int
    first_event: tuple[float, float, float]
    whole: tuple[float, float, float]


async def added(options: CellOptions) -> Added:
    """
    Args:
        options: of the cell whose HTTP front is used here, too.
    """
    body = {
        "model": "mock",
        "messages": [{"role": "user", "content": "One, two, three."}],
        "stream": True,
        "max_tokens": _TOKENS,
        "ignore_eos": True,
    }
    mock = msgspec.structs.replace(mock_options(_STEP_S), http=options.http)
    async with cell(mock) as running, started("bench.compat.bare") as child:
        port = urlsplit(running.api or "").port or 0
        async with tap("127.0.0.1", port) as recording:
            ports = (port, urlsplit(recording.url).port or 0)
            child.send(Ways(ports, "/v1/chat/completions", msgspec.json.encode(body).decode(), _ROUNDS))
            return summed(await child.receive(Waited))


def summed(waited: Waited) -> Added:
    def quartiles(pairs: tuple[tuple[float, float], ...]) -> tuple[float, float, float]:
        low, middle, high = np.percentile([tapped - direct for direct, tapped in pairs], [25, 50, 75])
        return float(low), float(middle), float(high)

    return Added(rounds=len(waited.first_s), first_event=quartiles(waited.first_s), whole=quartiles(waited.whole_s))
