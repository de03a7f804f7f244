"""What does the hand-off need from whatever moves bytes?

Two implementations: `transport.loopback` (in one process, with scripted faults) and `transport.ucx`. Everything runs on
the loop thread of its process. Semantics are those of two-sided tagged messages, as UCX has them:

- The receiver chooses the memory; a message is matched by its 64-bit tag alone.
- A send or receive that was started owns its memory until its future is done. Nothing cancels one but closing its link.
- A message shorter than the memory posted for it ends the receive. A longer one ends it with `TransferFailed`, and ends
  its send; the wire never says how long a message was (UCXX does not know).
- Control messages are small, arrive whole, in the order sent on one link, and before any data sent after them matters.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

from runtime.buffers import Region


class Link(Protocol):
    """One way to one incarnation of a peer. Made by `Wire.connect`, never reused for another incarnation."""

    def send(self, tag: int, region: Region) -> asyncio.Future[None]:
        """Start sending; the future ends when `region` may be reused, with `PeerLost` when it never arrived."""
        ...

    def send_control(self, message: bytes) -> None:
        """Start sending a small message; its loss shows as the loss of the peer."""
        ...

    def recv(self, tag: int, region: Region) -> asyncio.Future[None]:
        """Start receiving one message of at most `region.nbytes` bytes; the future ends when it is in.

        `PeerLost` when it will not come any more, `TransferFailed` when it is longer than `region`.
        """
        ...

    def close(self) -> None:
        """The peer is dead, or nobody listens to it any more: end what is pending.

        Futures end with `PeerLost` as soon as the wire has let go of their memory; one that it never lets go of stays
        pending, and its owner quarantines that memory.
        """
        ...


class Wire(Protocol):
    @property
    def address(self) -> bytes:
        """What another process needs in order to `connect` here."""
        ...

    def connect(self, address: bytes) -> Link: ...

    def on_control(self, handler: Callable[[bytes], None]) -> None:
        """Call `handler` with every control message that arrives, from whomever; set once, before any peer connects."""
        ...

    def describe(self, link: Link) -> str:
        """The transport that the wire chose for the bulk data of a link, in its own words: `tcp`, `cuda_ipc`, ..."""
        ...

    def close(self) -> None: ...
