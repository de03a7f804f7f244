"""How does a test get two workers' KV ports with real pages behind them?"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

from engine.fake import FakeEngine, fake_layout
from engine.port import Row
from runtime.clock import SystemClock
from transport.kv import KvPort
from transport.loopback import Faults, LoopbackHub

PAGE_TOKENS = 4
LAYOUT = fake_layout(PAGE_TOKENS, kv_bytes_per_token=32)


def engine(total_pages: int = 16) -> FakeEngine:
    return FakeEngine(LAYOUT, total_pages)


def filled(prompt: Sequence[int], pages: Sequence[int]) -> FakeEngine:
    """An engine that has computed `prompt` into `pages`."""
    computed = engine()
    computed.forward([Row(tuple(prompt), 0, tuple(pages), None)])
    return computed


def page_bytes(computed: FakeEngine, page: int) -> bytes:
    (region,) = computed.regions((page,))
    return ctypes.string_at(region.address, region.nbytes)


@dataclass
class Pair:
    """A prefill worker's port and a decode worker's, in one loop; to be made inside it."""

    hub: LoopbackHub
    prefill: KvPort
    decode: KvPort

    def close(self) -> None:
        self.prefill.close()
        self.decode.close()


def pair(faults: Faults | None = None, timeout_s: float = 5.0) -> Pair:
    hub = LoopbackHub(faults)

    def port(worker_id: str) -> KvPort:
        return KvPort(
            hub.join(),
            worker_id=worker_id,
            epoch=1,
            fingerprint=LAYOUT.fingerprint,
            host_id="host",
            clock=SystemClock(),
            timeout_s=timeout_s,
        )

    return Pair(hub, port("p0"), port("d0"))
