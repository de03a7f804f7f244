"""How do messages travel between processes?

Over UCX, which chooses the transport: TCP, RDMA, or NVLink through cuda_ipc. The only module that imports UCXX, and of
it the low-level objects: the `await` of its own asyncio API spins the loop while it waits.

All on the loop thread. UCX's event descriptor wakes the loop; `_drive` then progresses UCX, ends the futures of what
completed and arms the descriptor again. Idle costs nothing.

**A peer may die at any moment**, so endpoints have error handling, and host memory does not travel through shared
memory, not even on one host. What `kill -9` of a peer in mid-transfer did there (UCX 1.20.1 and 1.21.0, two cores):

- Without error handling UCX reads the peer's memory itself (CMA): 22 of 40 receivers *aborted* with their sender, as
  UCX takes the failed read for fatal. Sends to a dead receiver stayed pending for ever.
- With it and MM_ERROR_HANDLING bytes go through a queue in shared memory: after 13 of 27 kills the receiver got nothing
  more, from anybody, because the queue waits for the slot that the dead sender was writing to. One send in four to a
  dead receiver stayed pending for ever.
- With it alone they go through TCP: 60 kills, no abort, no wedge, everything ended within milliseconds of closing the
  link, and nothing was left in the system. (tests/e2e/test_ucx_peer_death.py)

The price: 2 to 4 GB/s in place of 7 to 13 with CMA, 8 ms of CPU per 12 MB in place of 2. UCX reports the death of a
connected peer at once, of one that is still connecting perhaps never, and a stopped one never: `Link.close` is how it
learns.

GPU memory should pay nothing: by its source, cuda_ipc supports error handling and event descriptors and can invalidate
keys, which is what rendezvous asks of a transport (`make gpu-check` kills peers there, too). Words of the ports stay
with TCP. The pool is older than UCX's context, so UCX must not trust its cache of what is GPU memory. It reads
UCX_MEMTYPE_CACHE when it is loaded and never again; UCXX sets it to n, but behind the load.
"""

import asyncio
import contextlib
import ctypes
import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

os.environ.setdefault("UCX_MEMTYPE_CACHE", "n")  # see above

from ucxx._lib.arr import Array  # type: ignore[import-untyped]  # UCXX has no type information
from ucxx._lib.libucxx import (  # type: ignore[import-untyped]  # UCXX has no type information
    Feature,
    UCXAddress,
    UCXContext,
    UCXEndpoint,
    UCXError,
    UCXMessageTruncatedError,
    UCXRequest,
    UCXWorker,
    UCXXTag,
    UCXXTagMask,
    get_ucx_version,
)

from runtime.buffers import MemoryKind, Region
from transport.errors import PeerLost, TransferFailed
from transport.ucx_report import UNKNOWN, bulk_transport, endpoint_report
from transport.wire import Link

_CONTROL = 1 << 63
"""Set in the tags of control messages; their other bits name the sender, so that each sender's stay in order."""

_BUDGET_S = 0.002
"""How long `_drive` may keep the loop from its other work while messages keep coming."""

_CUDA = ("cuda_copy", "cuda_ipc")
"""UCX's transports of GPU memory: between it and the host's, and between two processes."""

_PYBUF_WRITE = 0x200
_view = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)(
    ("PyMemoryView_FromMemory", ctypes.pythonapi)
)


class UcxWire:
    """One UCX worker; made, used and closed on the thread of the running loop.

    For GPU memory the loop thread needs a current CUDA context before the wire is made.

    Args:
        memory: where the pages are that it will move.
    """

    def __init__(self, memory: MemoryKind = MemoryKind.HOST) -> None:
        """
        Raises:
            ValueError: UCX_TLS leaves out what GPU memory needs.
        """
        self._loop = asyncio.get_running_loop()
        options = configuration(memory)
        with _without_ucx_environment():
            context = UCXContext(options, feature_flags=(Feature.TAG, Feature.WAKEUP))
            self._worker = UCXWorker(context, enable_delayed_submission=False, enable_python_future=False)
        self._worker.init_blocking_progress_mode()
        self._address: bytes = self._worker.address.tobytes()
        self._control_tag = UCXXTag(_CONTROL | int.from_bytes(hashlib.blake2b(self._address, digest_size=7).digest()))
        self._pending: dict[UCXRequest, _Operation] = {}
        self._arriving: dict[int, deque[_Arrival]] = {}
        self._handler: Callable[[bytes], None] | None = None
        self._links: list[UcxLink] = []
        self._is_woken = False
        self._is_closed = False
        self._loop.add_reader(self._worker.epoll_file_descriptor, self._drive)
        self._wake()

    @property
    def address(self) -> bytes:
        return self._address

    def connect(self, address: bytes) -> "UcxLink":
        """
        Raises:
            PeerLost: UCX cannot reach the process that this address belongs to.
        """
        try:
            endpoint = UCXEndpoint.create_from_worker_address(
                self._worker, UCXAddress.create_from_buffer(address), endpoint_error_handling=True
            )
        except UCXError as error:
            raise PeerLost(str(error)) from error
        link = UcxLink(self, endpoint, self._control_tag)
        self._links.append(link)
        return link

    def on_control(self, handler: Callable[[bytes], None]) -> None:
        self._handler = handler

    def describe(self, link: Link) -> str:
        """What UCX says it uses for messages of any size; `unknown` before the first message, or if it does not say."""
        return link.describe() if isinstance(link, UcxLink) else UNKNOWN

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.remove_reader(self._worker.epoll_file_descriptor)
        for link in self._links:
            link.close()
        self._worker.progress()
        self._end_completed()
        self._discard_unclaimed()

    def forget(self, link: "UcxLink") -> None:
        """Keep nothing of a closed link; what is still pending on it is kept until it ends."""
        if not self._is_closed:
            self._links.remove(link)
        self._wake()

    def track(self, request: UCXRequest, buffer: object) -> asyncio.Future[None]:
        """A future for what was just started; `buffer` lives until it is done."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._pending[request] = _Operation(future, buffer)
        self._wake()
        return future

    def lost(self) -> asyncio.Future[None]:
        """A future for what cannot be started."""
        future: asyncio.Future[None] = self._loop.create_future()
        future.set_exception(PeerLost("the link is closed"))
        return future

    # --- the event loop ----------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Drive in the next turn of the loop, once for a burst: what was just started may end without any event."""
        if not self._is_woken:
            self._is_woken = True
            self._loop.call_soon(self._drive)

    def _drive(self) -> None:
        """Do what UCX has to do, then wait for its event; from time to time let the loop do something else."""
        self._is_woken = False
        if self._is_closed:
            return
        until = time.perf_counter() + _BUDGET_S
        while time.perf_counter() < until:
            if self._worker.progress_once():
                continue
            self._worker.progress()  # cancels, too, what is left of endpoints that failed
            self._take_control()
            self._end_completed()
            if self._worker.arm():
                return
        self._take_control()
        self._end_completed()
        self._wake()

    def _end_completed(self) -> None:
        # 0.2 us for each that is pending. 3,000 receives take 0.5 ms, in which more arrive: each pass then ends many.
        for request in [request for request in self._pending if request.completed]:
            future = self._pending.pop(request).future
            if future.done():
                continue
            try:
                request.check_error()
            except UCXMessageTruncatedError as error:
                future.set_exception(TransferFailed(str(error)))
            except UCXError as error:
                future.set_exception(PeerLost(str(error)))
            else:
                future.set_result(None)

    def _discard_unclaimed(self) -> None:
        """Take what no receive was posted for, into one byte, which ends at once.

        UCXX's destructor would receive it whole, and wait for ever if its sender has closed the endpoint meanwhile.
        """
        while (probe := self._worker.tag_probe(UCXXTag(0), UCXXTagMask(0), remove=True)).matched:
            scrap = bytearray(1)
            self.track(self._worker.tag_recv_with_handle(Array(scrap), probe), scrap).add_done_callback(
                asyncio.Future.exception
            )
        self._end_completed()

    def _take_control(self) -> None:
        """Receive what has arrived. A large one takes some turns, and holds up only what its own sender says next."""
        while True:
            probe = self._worker.tag_probe(UCXXTag(_CONTROL), UCXXTagMask(_CONTROL), remove=True)
            if not probe.matched:
                break
            buffer = bytearray(probe.length)
            request = self._worker.tag_recv_with_handle(Array(buffer), probe)
            self._arriving.setdefault(probe.sender_tag.value, deque()).append(_Arrival(request, buffer))
        for tag, arrivals in list(self._arriving.items()):
            while arrivals and arrivals[0].request.completed:
                self._hand_over(arrivals.popleft())
            if not arrivals:
                del self._arriving[tag]

    def _hand_over(self, arrival: "_Arrival") -> None:
        with contextlib.suppress(UCXError):  # its sender died while sending it
            arrival.request.check_error()
            if self._handler is not None:
                self._loop.call_soon(self._handler, bytes(arrival.buffer))


class UcxLink:
    """One endpoint."""

    def __init__(self, wire: UcxWire, endpoint: UCXEndpoint, control_tag: UCXXTag) -> None:
        self._wire = wire
        self._endpoint: UCXEndpoint | None = endpoint  # None: closed
        self._control_tag = control_tag

    def send(self, tag: int, region: Region) -> asyncio.Future[None]:
        if self._endpoint is None:
            return self._wire.lost()
        memory = as_buffer(region)
        return self._wire.track(self._endpoint.tag_send(Array(memory), UCXXTag(tag)), memory)

    def send_control(self, message: bytes) -> None:
        if self._endpoint is not None:
            sent = self._wire.track(self._endpoint.tag_send(Array(message), self._control_tag), message)
            sent.add_done_callback(asyncio.Future.exception)

    def recv(self, tag: int, region: Region) -> asyncio.Future[None]:
        if self._endpoint is None:
            return self._wire.lost()
        memory = as_buffer(region)
        return self._wire.track(self._endpoint.tag_recv(Array(memory), UCXXTag(tag)), memory)

    def close(self) -> None:
        if self._endpoint is not None:
            self._endpoint.close_blocking()  # by force, so it waits for nobody: 0.05 ms
            self._endpoint = None
            self._wire.forget(self)

    def describe(self) -> str:
        return bulk_transport(endpoint_report(self._endpoint.handle)) if self._endpoint is not None else UNKNOWN


@dataclass(frozen=True, slots=True)
class _Operation:
    future: asyncio.Future[None]
    buffer: object


@dataclass(frozen=True, slots=True)
class _Arrival:
    """A control message that is being received."""

    request: UCXRequest
    buffer: bytearray


class _CudaMemory:
    """GPU memory as UCXX takes it."""

    def __init__(self, region: Region) -> None:
        self.__cuda_array_interface__ = {
            "data": (region.address, False),
            "shape": (region.nbytes,),
            "typestr": "|u1",
            "version": 3,
        }


def as_buffer(region: Region) -> object:
    """`region` as an object that UCXX takes, without a copy."""
    if region.kind is MemoryKind.CUDA:
        return _CudaMemory(region)
    view: memoryview = _view(region.address, region.nbytes, _PYBUF_WRITE)
    return view


def configuration(memory: MemoryKind = MemoryKind.HOST) -> dict[str, str]:
    """Every option that matters here, and the two by which an operator chooses transports; without their UCX_.

    Raises:
        ValueError: they leave out what GPU memory needs.
    """
    options = {
        "TLS": "^sm",  # all but shared memory
        "RNDV_THRESH": "8192",  # larger messages wait for their receive at the sender, not in the receiver's memory
        "TCP_TX_SEG_SIZE": "256k",  # fewer system calls than with 8 KB
        "TCP_RX_SEG_SIZE": "256k",
    }
    chosen = {name: os.environ[f"UCX_{name}"] for name in ("TLS", "NET_DEVICES") if os.environ.get(f"UCX_{name}")}
    if not chosen and get_ucx_version() >= (1, 21, 0):  # older ones cannot connect over the loopback device
        # A cell is on one host, and UCX authenticates nobody: what listens for it is out of reach of other machines.
        options["NET_DEVICES"] = "lo"
    if memory is MemoryKind.CUDA and "TLS" in chosen:
        chosen["TLS"] = _with_cuda(chosen["TLS"])
    return options | chosen


def _with_cuda(transports: str) -> str:
    """A list of UCX's transports that knows GPU memory: UCX without cuda_copy takes it for the host's, and crashes."""
    excludes = transports.startswith("^")
    named = set(transports.lstrip("^").split(","))
    if excludes and named & {"cuda", "cuda_copy"}:
        raise ValueError(f"UCX_TLS={transports} leaves out cuda_copy, without which UCX cannot touch GPU memory")
    if excludes or named & {"all", "cuda"}:
        return transports
    return ",".join([transports, *(name for name in _CUDA if name not in named)])


@contextlib.contextmanager
def _without_ucx_environment() -> Iterator[None]:
    """UCX reads UCX_* variables wherever an option is not given, and UCXX sets some when it is imported."""
    saved = {name: value for name, value in os.environ.items() if name.startswith("UCX_")}
    for name in saved:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(saved)
