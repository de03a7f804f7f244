"""How does a kvrelay process begin and end?

Crash-only (ADR-0008): `run` ends with 0 when `main` returns, and with 1 and a traceback when anything in it raised. A
process dies with its parent, by the kernel's hand, so that nothing survives a `kill -9` of the launcher. SIGTERM asks
for a good end; SIGINT is the launcher's business, because a terminal sends it to every process in the foreground.
"""

import asyncio
import ctypes
import logging
import os
import platform
import secrets
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, NoReturn

import uvloop

_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h


def die_with_parent(parent_pid: int, signal_number: signal.Signals = signal.SIGKILL) -> None:
    """Ask the kernel for `signal_number` when the parent ends; Linux only, prctl(2). Ends at once if it has already.

    The parent must have started this process from a thread that lives as long as the parent does.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal_number), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if not parent_is(parent_pid):
        sys.exit(f"the parent process {parent_pid} is gone already")


def parent_is(pid: int) -> bool:
    """False once the parent has ended: the kernel then gives its children to another process."""
    return os.getppid() == pid


def pin(cores: Sequence[int]) -> None:
    """Run this process and the threads it will start on `cores` only; none given: anywhere."""
    if cores and sys.platform == "linux":
        os.sched_setaffinity(0, cores)


def keep_freed_memory() -> None:
    """Tell glibc to keep what is freed instead of giving it back to the kernel; called before any large allocation.

    A prefill step frees its activations and the next one allocates them again. If the kernel has to give fresh pages
    each time, that is 30,000 to 85,000 faults and 4 to 9 % of the CPU time of 512 tokens of the default model.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_ARENA_MAX, 1)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)


def new_epoch() -> int:
    """A random identity for one boot of one process, below 2^63."""
    return secrets.randbits(63)


def host_id() -> str:
    """Equal for processes that share a kernel boot and therefore memory; it names the host in no other way."""
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    return boot_id.read_text().strip() if boot_id.exists() else "unknown-host"


def run(main: Callable[[asyncio.Event], Coroutine[object, object, None]]) -> None:
    """Run `main(stop)` on uvloop to its end; `stop` is set by SIGTERM. Exits the process."""
    try:
        uvloop.run(_with_signals(main))
    except Exception:
        logging.getLogger("kvrelay").exception("this process cannot go on")
        _leave()


def fail_loudly(error: BaseException) -> None:
    """End the process for a broken invariant that was found where a library catches what is raised."""
    asyncio.get_running_loop().call_soon(_reraise, error)


def _reraise(error: BaseException) -> NoReturn:
    raise error


def _leave() -> NoReturn:
    """Other threads (engine, UCX) may be stuck in foreign code: end without waiting for them."""
    logging.shutdown()
    os._exit(1)


def _on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What a callback raises (a message's handler, say) reaches no caller; asyncio alone would log it and go on."""
    if "handle" in context:
        logging.getLogger("kvrelay").critical("this process cannot go on", exc_info=context.get("exception"))
        _leave()
    loop.default_exception_handler(context)


async def _with_signals(main: Callable[[asyncio.Event], Coroutine[object, object, None]]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_on_loop_error)
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    await main(stop)
