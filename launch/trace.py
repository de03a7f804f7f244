"""How does `kvrelay trace` get the timeline of a running cell, and where does it put it?

`fetch_trace` is the way in for programs; what the events mean is decided in `launch.trace_events`.
"""

import asyncio
from pathlib import Path

import msgspec
from rich.console import Console

from launch.client import ServerUnreachable, StreamingClient
from launch.trace_events import TraceDocument, trace_document
from transport.messages.client import AskTimeline, TimelineEnd, TimelinePart

PART_TIMEOUT_S = 10.0
"""The coordinator gives a worker up after two seconds, and then tells of the next one."""


async def fetch_trace(client: StreamingClient, last_s: float) -> TraceDocument:
    """What every process of the cell did in the last `last_s` seconds, as far back as it has it. One call at a time.

    Raises:
        ServerUnreachable: no answer, or the coordinator will not tell; the text says why.
    """
    while not client.timelines.empty():
        client.timelines.get_nowait()  # of a call that was given up
    parts: list[TimelinePart] = []
    client.send(AskTimeline(last_s=last_s))
    while True:
        try:
            async with asyncio.timeout(PART_TIMEOUT_S):
                message = await client.timelines.get()
        except TimeoutError as error:
            raise ServerUnreachable(f"the cell did not tell its timeline within {PART_TIMEOUT_S:g} s") from error
        if isinstance(message, TimelineEnd):
            if message.error is not None:
                raise ServerUnreachable(message.error)
            return await asyncio.to_thread(trace_document, parts, message.missing)  # streams of this client go on
        parts.append(message)


def write_trace(document: TraceDocument, output: Path) -> None:
    """
    Raises:
        OSError: it cannot be written.
    """
    output.write_bytes(msgspec.json.encode(document))


def print_trace(console: Console, document: TraceDocument, output: Path) -> None:
    """What is in it, how well the clocks are known, what is missing."""
    notes = document.otherData
    console.print(f"{output}: {len(document.events)} events; open it in ui.perfetto.dev", highlight=False)
    for process in notes.processes:
        reach = f", recorded for {process.reaches_s:.1f} s only" if process.reaches_s is not None else ""
        placed = f"clock ± {process.uncertainty_s * 1e3:.2f} ms"
        console.print(f"  {process.name}: {process.events} events, {placed}{reach}", highlight=False)
    for name in notes.missing:
        console.print(f"  [bold yellow]{name} did not answer[/]", highlight=False)
    console.print(f"  {notes.arrows} hand-offs drawn as arrows, {notes.arrows_left_out} left out", highlight=False)
