"""How fast do pages travel between two processes that share a GPU?

The processes, ports and words of `bench.transfer`, with memory on the device: from `send` until both sides have settled.
In one run of memory, and in single pages with a gap behind each, which is one message a page. Compared with a copy
inside the device's memory, which a transfer is where UCX uses cuda_ipc: the receiver copies out of the sender's memory.
"""

import asyncio
import os

import uvloop

from bench.child import started
from bench.gpu.floors import copied_bytes
from bench.gpu.parts import Settings, Tell
from bench.rows import summarise
from bench.transfer import Pair, connected

_PAGE_TOKENS = 16
_TOKENS = (128, 512, 2048, 8192)
_ROUNDS = 5
_RATIO_NOTE = "1 is a copy inside the device's memory; of a small transfer the words of the two ports, which are Python"
_RATE_NOTE = "bytes of pages over the time until both sides have settled"
_DIRECT = "cuda_ipc"


def run(settings: Settings, tell: Tell) -> None:
    uvloop.run(_run(settings, tell))


async def _run(settings: Settings, tell: Tell) -> None:
    token_bytes = settings.shape.kv_token_bytes
    page_bytes = _PAGE_TOKENS * token_bytes
    sizes = _TOKENS if settings.on_gpu else _TOKENS[:2]
    pool_bytes = 2 * max(sizes) * token_bytes + 2 * page_bytes
    cores = sorted(os.sched_getaffinity(0))
    async with (
        started("bench.transfer_peer", cores[:1]) as sender,
        started("bench.transfer_peer", cores[-1:]) as receiver,
    ):
        async with asyncio.timeout(40):
            pair = await connected(sender, receiver, pool_bytes, settings.device)
            await pair.move_s(page_bytes * 4, page_bytes, verify=True)  # connects, and proves the bytes
        tell(note=f"UCX moves pages of {settings.device} over {pair.transport}")
        if settings.on_gpu and pair.transport != _DIRECT:
            tell(note=f"NOT {_DIRECT}: the numbers below are of another way than the one that is meant")
        for tokens in sizes:
            for layout, run_bytes in (("one run", tokens * token_bytes), ("single pages", page_bytes)):
                await _measure(pair, settings, tell, tokens, layout, run_bytes)


async def _measure(pair: Pair, settings: Settings, tell: Tell, tokens: int, layout: str, run_bytes: int) -> None:
    nbytes = tokens * settings.shape.kv_token_bytes
    await pair.move_s(nbytes, run_bytes, verify=nbytes <= 64 << 20)
    seconds = [await pair.burst_s(nbytes, run_bytes) for _ in range(_ROUNDS)]
    parameters: dict[str, str | int] = {
        "tokens": tokens,
        "MiB": nbytes >> 20,
        "in": layout,
        "transport": pair.transport,
    }
    if settings.rates is not None:
        shares = [copied_bytes(nbytes) / s / settings.rates.copy for s in seconds]
        tell(
            summarise(
                "transfer",
                "hand-off / device copy",
                shares,
                unit="ratio",
                limited_by=_RATIO_NOTE,
                parameters=parameters,
            )
        )
    tell(
        summarise(
            "transfer",
            "hand-off rate",
            [nbytes / s for s in seconds],
            unit="GB/s",
            scale=1e-9,
            limited_by=_RATE_NOTE,
            parameters=parameters,
        ),
        summarise(
            "transfer",
            "hand-off",
            seconds,
            unit="ms",
            scale=1e3,
            limited_by=_RATE_NOTE,
            parameters=parameters,
        ),
    )
