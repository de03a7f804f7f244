"""Does a worker end when its GPU is lost, wherever that shows first?

What torch raises then is a RuntimeError (`torch.AcceleratorError` since 2.8): an illegal address, an ECC error, a GPU
that fell off the bus. The context is gone with all pages in it, and every later call raises again.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from decode_worker.worker import DecodeWorker
from engine.fake import FakeEngine
from engine.port import Row, RowResult
from engine.thread import EngineThread
from runtime.buffers import MemoryKind, Region
from runtime.clock import SystemClock
from runtime.params import SamplingParams
from tests.support.kv_pair import LAYOUT, Pair, filled, pair
from tests.unit.decode_worker.test_worker import CONFIG, PAGES, Coordinator
from transport.messages.worker import Admit, Serve


class LostDevice(RuntimeError):
    """As torch says it."""

    def __init__(self) -> None:
        super().__init__("CUDA error: an illegal memory access was encountered")


class LostEngine(FakeEngine):
    """Its pages are said to be in a GPU, and nothing can be computed there any more."""

    def forward(self, rows: Sequence[Row]) -> list[RowResult]:  # noqa: ARG002 - whatever it is asked
        raise LostDevice

    def digest(self, pages: Sequence[int]) -> bytes:  # noqa: ARG002 - likewise
        raise LostDevice

    def regions(self, pages: Sequence[int]) -> tuple[Region, ...]:
        return tuple(Region(r.address, r.nbytes, MemoryKind.CUDA) for r in super().regions(pages))


def ends(act: Callable[[DecodeWorker, Pair], None]) -> None:
    """The worker's `run` raises what the engine raised; `runtime.process.run` makes exit code 1 of that."""

    async def run() -> None:
        ports, thread, said = pair(), EngineThread(), Coordinator()
        membership: Any = said
        hello: Any = None
        engine = LostEngine(LAYOUT, PAGES)
        worker = DecodeWorker(engine, thread, ports.decode, membership, SystemClock(), CONFIG)
        running = asyncio.create_task(worker.run(hello, asyncio.Event()))
        try:
            async with asyncio.timeout(20):
                await said.welcomed.wait()
                act(worker, ports)
                with pytest.raises(ExceptionGroup) as raised:
                    await running
            assert raised.group_contains(LostDevice, match="illegal memory access")
        finally:
            thread.close()
            ports.close()

    asyncio.run(run())


def test_a_step_on_a_lost_device_ends_the_worker() -> None:
    sampling = SamplingParams(max_tokens=4, seed=0)
    ends(lambda worker, _: worker.on_message(Serve(request_id=1, prompt=(1, 2, 3), sampling=sampling, pages=2)))


def test_a_hand_off_that_failed_because_the_device_is_lost_ends_a_worker_that_only_receives() -> None:
    prompt = tuple(range(1, 11))
    source = filled(prompt, (0, 1, 2))

    def hand_off(worker: DecodeWorker, ports: Pair) -> None:
        outbound = ports.prefill.send(7, ports.decode.peer, source.regions((0, 1, 2)))
        worker.on_message(
            Admit(
                request_id=1,
                transfer_id=7,
                peer=ports.prefill.peer,
                prompt=prompt,
                sampling=SamplingParams(max_tokens=4, seed=0),
                pages=4,
            )
        )
        outbound.abort("the wire says that a copy failed")

    ends(hand_off)
