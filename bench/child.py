"""How does a benchmark talk to a process of its own?

Both ends exchange one line of JSON per message over a socket pair, so that whatever a library prints does no harm. The
child dies with its benchmark, by the kernel's hand, and is killed when the block that started it ends.
"""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, closing, suppress
from typing import TypeVar

import msgspec

from runtime import logs, process

T = TypeVar("T", bound=msgspec.Struct)

_MAX_LINE_BYTES = 1 << 20


class ChildEnded(Exception):
    """The other end of the channel is gone: the child failed, or the benchmark is done with it."""


class Channel:
    """Typed messages in both directions."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, message: msgspec.Struct) -> None:
        self._writer.write(msgspec.json.encode(message) + b"\n")

    async def receive(self, type_: type[T]) -> T:
        """
        Raises:
            ChildEnded: nothing will come any more.
        """
        line = await self._reader.readline()
        if not line:
            raise ChildEnded("the other process has ended; what it printed is above")
        return msgspec.json.decode(line, type=type_)

    def close(self) -> None:
        self._writer.close()


@asynccontextmanager
async def started(module: str, cores: Sequence[int] = ()) -> AsyncIterator[Channel]:
    """`python -m module` on `cores`, alive inside the block."""
    ours, theirs = socket.socketpair()
    with theirs, closing(await _open(ours)) as channel:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            str(theirs.fileno()),
            str(os.getpid()),
            ",".join(map(str, cores)),
            pass_fds=(theirs.fileno(),),
            start_new_session=True,  # Ctrl-C is ours alone
        )
        theirs.close()  # the child's is the only one now, so that its death ends the channel
        try:
            yield channel
        finally:
            if child.returncode is None:
                child.kill()
            await child.wait()


def serve(main: Callable[[Channel], Awaitable[None]]) -> None:
    """The other end: run `main` until the benchmark closes the channel. Called by the `__main__` of `module`."""
    descriptor, parent_pid, cores = sys.argv[1:]
    process.die_with_parent(int(parent_pid))
    process.pin([int(core) for core in cores.split(",") if core])
    process.keep_freed_memory()
    logs.configure("bench")

    async def serve_channel(_stop: asyncio.Event) -> None:
        channel = await _open(socket.socket(fileno=int(descriptor)))
        with closing(channel), suppress(ChildEnded):
            await main(channel)

    process.run(serve_channel)


async def _open(end: socket.socket) -> Channel:
    return Channel(*await asyncio.open_unix_connection(sock=end, limit=_MAX_LINE_BYTES))
