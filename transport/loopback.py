"""How do messages travel when both ends are in one process, and how do they fail on request?

The wire of the tests: the semantics of `transport.wire`, real copies between real memory, and faults that a script
names by the number of the message. Everything happens in later turns of the loop, never in the call itself.
"""

import asyncio
import ctypes
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from runtime.buffers import Region
from transport.errors import PeerLost, TransferFailed
from transport.wire import Link


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong. Data and control messages of a hub are numbered from 0 in the order in which they are sent."""

    drop_control: frozenset[int] = frozenset()
    duplicate_control: frozenset[int] = frozenset()
    drop_data: frozenset[int] = frozenset()  # the send ends well, the message never arrives
    fail_data: frozenset[int] = frozenset()  # both ends are told so
    flip_data: frozenset[int] = frozenset()  # the first byte arrives inverted
    kill_sender_at: int | None = None  # the process that sends this data message dies with it
    kill_receiver_at: int | None = None
    control_turns: int = 0  # how many turns of the loop a message takes longer than it must
    data_turns: int = 0
    clings: bool = False  # a closed link never lets go of the memory of its messages


@dataclass(eq=False, slots=True)
class _Message:
    """A send or a receive that was started."""

    region: Region
    done: asyncio.Future[None]

    def end(self, error: Exception | None = None) -> None:
        if self.done.done():
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)


class LoopbackHub:
    """Where wires meet. A hub is one network: its faults count the messages of all its wires."""

    def __init__(self, faults: Faults | None = None) -> None:
        self.faults = faults or Faults()
        self.wires: list[LoopbackWire] = []
        self._held: list[Callable[[], None]] | None = None
        self._data_sent = 0
        self._control_sent = 0

    def join(self) -> "LoopbackWire":
        wire = LoopbackWire(self, b"%d" % len(self.wires))
        self.wires.append(wire)
        return wire

    def find(self, address: bytes) -> "LoopbackWire":
        """
        Raises:
            PeerLost: no wire has this address.
        """
        for wire in self.wires:
            if wire.address == address:
                return wire
        raise PeerLost(f"no wire at {address!r}")

    def kill(self, wire: "LoopbackWire") -> None:
        """Its process dies: nothing comes from it or reaches it any more, and nobody is told."""
        wire.alive = False

    def hold(self) -> None:
        """Deliver nothing until `release`."""
        self._held = self._held if self._held is not None else []

    def release(self) -> None:
        """Deliver what was held, in the order sent."""
        held, self._held = self._held or [], None
        for deliver in held:
            deliver()

    def carry_control(self, source: "LoopbackWire", target: "LoopbackWire", message: bytes) -> None:
        number, self._control_sent = self._control_sent, self._control_sent + 1
        copies = 0 if number in self.faults.drop_control else 2 if number in self.faults.duplicate_control else 1
        for _ in range(copies):
            self._carry(lambda: target.take_control(message), source, target, self.faults.control_turns)

    def carry_data(self, source: "LoopbackWire", target: "LoopbackWire", tag: int, send: _Message) -> None:
        number, self._data_sent = self._data_sent, self._data_sent + 1
        faults = self.faults
        if number == faults.kill_sender_at:
            self.kill(source)
        if number == faults.kill_receiver_at:
            self.kill(target)
        if number in faults.drop_data:
            asyncio.get_running_loop().call_soon(send.end)
            return
        failure = TransferFailed(f"data message {number} failed") if number in faults.fail_data else None
        parcel = _Parcel(send, failure, flipped=number in faults.flip_data)
        self._carry(lambda: target.take_data(tag, parcel), source, target, faults.data_turns)

    def _carry(
        self, deliver: Callable[[], None], source: "LoopbackWire", target: "LoopbackWire", extra_turns: int
    ) -> None:
        loop = asyncio.get_running_loop()

        def turn(left: int) -> None:
            if not (source.alive and target.alive):
                return
            if left > 0:
                loop.call_soon(turn, left - 1)
            elif self._held is not None:
                self._held.append(lambda: turn(0))
            else:
                deliver()

        loop.call_soon(turn, extra_turns)


@dataclass(eq=False, slots=True)
class _Parcel:
    """A data message that has arrived."""

    send: _Message
    failure: Exception | None
    flipped: bool

    def unpack(self, receive: _Message) -> None:
        """Move the bytes, and end both ends."""
        source, target = self.send.region, receive.region
        if self.send.done.done():  # its sender was told that it is lost
            return
        if self.failure is not None:
            self.send.end(PeerLost(str(self.failure)))
            receive.end(self.failure)
        elif source.nbytes > target.nbytes:
            self.send.end()
            receive.end(TransferFailed(f"{source.nbytes} bytes do not fit into {target.nbytes}"))
        else:
            ctypes.memmove(target.address, source.address, source.nbytes)
            if self.flipped:
                ctypes.c_uint8.from_address(target.address).value ^= 0xFF
            self.send.end()
            receive.end()


@dataclass(eq=False, slots=True)
class _Slot:
    """What waits under one tag: receives for messages, or messages for receives."""

    receives: deque[_Message] = field(default_factory=deque)
    parcels: deque[_Parcel] = field(default_factory=deque)

    def match(self) -> None:
        self.receives = deque(receive for receive in self.receives if not receive.done.done())  # without closed links'
        while self.receives and self.parcels:
            self.parcels.popleft().unpack(self.receives.popleft())


class LoopbackWire:
    """One process's end of the hub."""

    def __init__(self, hub: LoopbackHub, address: bytes) -> None:
        self.alive = True
        self._hub = hub
        self._address = address
        self._slots: dict[int, _Slot] = {}
        self._on_control: Callable[[bytes], None] | None = None
        self._links: list[LoopbackLink] = []

    @property
    def address(self) -> bytes:
        return self._address

    @property
    def unmatched(self) -> int:
        """Messages without a receive and receives without a message."""
        for slot in self._slots.values():
            slot.match()
        return sum(len(slot.parcels) + len(slot.receives) for slot in self._slots.values())

    def connect(self, address: bytes) -> "LoopbackLink":
        link = LoopbackLink(self._hub, self, self._hub.find(address))
        self._links.append(link)
        return link

    def on_control(self, handler: Callable[[bytes], None]) -> None:
        self._on_control = handler

    def describe(self, link: Link) -> str:
        return "loopback" if isinstance(link, LoopbackLink) else "unknown"

    def close(self) -> None:
        for link in self._links:
            link.close()

    def take_control(self, message: bytes) -> None:
        if self._on_control is not None:
            self._on_control(message)

    def take_data(self, tag: int, parcel: _Parcel) -> None:
        self._slots.setdefault(tag, _Slot()).parcels.append(parcel)
        self._match(tag)

    def post(self, tag: int, receive: _Message) -> None:
        self._slots.setdefault(tag, _Slot()).receives.append(receive)
        self._match(tag)

    def _match(self, tag: int) -> None:
        slot = self._slots[tag]
        slot.match()
        if not slot.receives and not slot.parcels:
            del self._slots[tag]


class LoopbackLink:
    """The way from one wire of a hub to another."""

    def __init__(self, hub: LoopbackHub, source: LoopbackWire, target: LoopbackWire) -> None:
        self._hub = hub
        self._source = source
        self._target = target
        self._pending: set[_Message] = set()
        self._closed = False

    def send(self, tag: int, region: Region) -> asyncio.Future[None]:
        message = self._start(region)
        if not self._closed:
            self._hub.carry_data(self._source, self._target, tag, message)
        return message.done

    def send_control(self, message: bytes) -> None:
        if not self._closed:
            self._hub.carry_control(self._source, self._target, message)

    def recv(self, tag: int, region: Region) -> asyncio.Future[None]:
        message = self._start(region)
        if not self._closed:
            asyncio.get_running_loop().call_soon(self._source.post, tag, message)
        return message.done

    def close(self) -> None:
        self._closed = True
        if not self._hub.faults.clings:
            for message in self._pending:
                _end_soon(message)

    def _start(self, region: Region) -> _Message:
        message = _Message(region, asyncio.get_running_loop().create_future())
        if self._closed:
            _end_soon(message)
        else:
            self._pending.add(message)
            message.done.add_done_callback(lambda _: self._pending.discard(message))
        return message


def _end_soon(message: _Message) -> None:
    asyncio.get_running_loop().call_soon(message.end, PeerLost("the link is closed"))
