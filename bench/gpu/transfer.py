"""How fast do pages travel between two processes that share a GPU?

The processes, ports and words of `bench.transfer`, with memory on the device: from `send` until both sides have
settled. In one run of memory, and in single pages with a gap behind each, which is one message a page. Compared with a
copy inside the device's memory, which a transfer is where UCX uses cuda_ipc: one side copies from or to the other's.
"""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass

import uvloop

from bench.child import started
from bench.gpu.floors import copied_bytes
from bench.gpu.parts import Settings, Tell
from bench.rows import Row, summarise
from bench.transfer import Pair, connected
from transport.kv import PIECE_BYTES

_PAGE_TOKENS = 16
_TOKENS = (128, 512, 2048, 8192)
_PIECES = (PIECE_BYTES, 8 * PIECE_BYTES)  # as workers have them, and larger: Python costs the same for each
_ROUNDS = 5
_RATIO_NOTE = "1 is a copy inside the device's memory; of a small transfer the words of the two ports, which are Python"
_RATE_NOTE = "bytes of pages over the time until both sides have settled"
_DIRECT = "cuda_ipc"
_OPENING_S = 30.0
_VERIFIED_BYTES = 64 << 20  # more take a second to be looked at


@dataclass(frozen=True, slots=True)
class _Layout:
    """How the pages of so many tokens lie, in words and as the length of their runs."""

    tokens: int
    words: str
    run_bytes: int


def run(settings: Settings, tell: Tell) -> None:
    uvloop.run(_run(settings, tell))


async def _run(settings: Settings, tell: Tell) -> None:
    token_bytes = settings.shape.kv_token_bytes
    page_bytes = _PAGE_TOKENS * token_bytes
    sizes = _TOKENS if settings.on_gpu else _TOKENS[:2]
    pool_bytes = 2 * max(sizes) * token_bytes + 2 * page_bytes
    cores = sorted(os.sched_getaffinity(0))
    for piece_bytes in _PIECES:
        as_workers = piece_bytes == PIECE_BYTES
        async with (
            started("bench.transfer_peer", cores[:1]) as sender,
            started("bench.transfer_peer", cores[-1:]) as receiver,
        ):
            async with asyncio.timeout(_OPENING_S):
                pair = await connected(sender, receiver, pool_bytes, settings.device, piece_bytes)
                await pair.move_s(page_bytes * 4, page_bytes, verify=True)  # connects, and proves the bytes
            if as_workers:
                tell(note=f"UCX moves pages of {settings.device} over {pair.transport}")
                if settings.on_gpu and pair.transport != _DIRECT:
                    tell(note=f"NOT {_DIRECT}: the numbers are of another way than the one that is meant")
            pieces = f"pieces of {piece_bytes >> 20} MiB"
            for tokens in sizes:
                await _measure(pair, settings, tell, _Layout(tokens, pieces, tokens * token_bytes))
                if as_workers:
                    await _measure(pair, settings, tell, _Layout(tokens, "single pages", page_bytes))


async def _measure(pair: Pair, settings: Settings, tell: Tell, layout: _Layout) -> None:
    nbytes = layout.tokens * settings.shape.kv_token_bytes
    await pair.move_s(nbytes, layout.run_bytes, verify=nbytes <= _VERIFIED_BYTES)
    seconds = [await pair.burst_s(nbytes, layout.run_bytes) for _ in range(_ROUNDS)]
    where: dict[str, str | int] = {
        "tokens": layout.tokens,
        "MiB": nbytes >> 20,
        "in": layout.words,
        "transport": pair.transport,
    }
    if settings.rates is not None:
        shares = [copied_bytes(nbytes) / s / settings.rates.copy for s in seconds]
        tell(_row("hand-off / device copy", shares, "ratio", _RATIO_NOTE, where))
    tell(
        _row("hand-off rate", [nbytes / s for s in seconds], "GB/s", _RATE_NOTE, where, 1e-9),
        _row("hand-off", seconds, "ms", _RATE_NOTE, where, 1e3),
    )


def _row(
    quantity: str, values: Sequence[float], unit: str, note: str, where: dict[str, str | int], scale: float = 1.0
) -> Row:
    return summarise("transfer", quantity, values, unit=unit, limited_by=note, parameters=where, scale=scale)
