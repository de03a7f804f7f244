"""How do the pages of a prompt get from a prefill worker to a decode worker?

One port per worker process, on its loop thread. The two sides are symmetrical and ask nobody first:

    prefill: send()   --Offer{runs}-->      <--Landing{runs}--   expect() :decode
             push()   ==piece 0==> ==piece 1==> ...
             finish() --Trailer{digests, note}-->                settled()

Each says at once how its pages are cut into contiguous runs. With both lists each computes the same pieces
(`transport.pieces`); decode posts a receive for every piece, prefill sends a piece as soon as its bytes are complete.
What comes before the local call is held. States: `transport.kv_settling.Phase`.

What is guaranteed while both processes live and the wire loses nothing:

1. Every receive that is posted is ended by one message, and every message that is sent finds a receive. Decode posts a
   receive for every piece exactly if its Landing met an Offer; prefill sends a message for every piece exactly if its
   Offer met a Landing. Each is said when its side starts and is held until the other side starts, so either both meet
   or none. A side that has let go of its pages before they met (abort, refusal, silence) keeps its half of the bargain
   with one byte of scrap: prefill fills, decode drains. So a cancelled transfer settles without cancelling anything.
   (test_kv_faults.py: test_every_message_finds_a_receive_whatever_happens)
2. After `settled()` without `quarantine` no page is touched: it waits for every message that was given a page.
   (test_kv_port.py: test_no_page_is_touched_after_the_end)
3. `ok` means these bytes, all of them. Prefill says the Trailer without an error only behind the last page, and then
   fills nothing with scrap; decode waits for it and for every piece.
   (test_kv_port.py: test_bytes_arrive_exactly_for_any_runs)

When a process dies or falls silent: every wait has a deadline. `peer_gone` closes the link, and the wire lets go of the
memory; what it still holds after a grace is reported as `quarantine`. (test_kv_faults.py: test_peer_gone_*)
Nothing is matched by its id alone: words of or to another incarnation, or about another layout, are dropped, counted.
(test_kv_faults.py: test_stale_*)
"""

import contextlib
import ctypes
from collections.abc import Sequence

from runtime.buffers import Region
from runtime.clock import Clock
from transport.codec import Codec
from transport.errors import PeerLost, ProtocolError
from transport.kv_early import EarlyMessages, Held, Incarnation, incarnation, said_by
from transport.kv_inbound import Inbound, ReceiveOutcome
from transport.kv_messages import Greeting, Header, KvMessage, Offer, Refused, Trailer
from transport.kv_outbound import Outbound, SendOutcome
from transport.kv_settling import Line, Timing
from transport.messages.common import MAX_REASON_CHARS, KvPeer
from transport.wire import Link, Wire

__all__ = ["PIECE_BYTES", "Inbound", "KvPort", "Outbound", "ReceiveOutcome", "SendOutcome"]

PIECE_BYTES = 8 << 20
"""The largest message, unless a port is told otherwise."""


class KvPort:
    """The hand-off of one worker: it sends as a prefill worker, or expects as a decode worker.

    Args:
        fingerprint: of the page layout; only equal ones exchange pages.
        host_id: equal for all workers of one machine.
        piece_bytes: the largest message; the smaller wish of both sides counts.
        timeout_s: longest silence of a peer that has something to do.
        offer_timeout_s: longest wait for the prefill worker's first word about a transfer; its queue is part of it.

    Attributes:
        stale_messages: how many messages were dropped because they were not meant for this incarnation, or not now.
    """

    def __init__(  # noqa: PLR0913 - plain values, all by name
        self,
        wire: Wire,
        *,
        worker_id: str,
        epoch: int,
        fingerprint: str,
        host_id: str,
        clock: Clock,
        piece_bytes: int = PIECE_BYTES,
        timeout_s: float = 30.0,
        offer_timeout_s: float = 300.0,
    ) -> None:
        self.stale_messages = 0
        self._wire = wire
        self._peer = KvPeer(worker_id=worker_id, epoch=epoch, address=wire.address, host_id=host_id)
        self._fingerprint = fingerprint
        self._piece_bytes = piece_bytes
        self._timing = Timing(clock, timeout_s, offer_timeout_s)
        self._codec: Codec[KvMessage] = Codec(KvMessage)
        self._links: dict[Incarnation, Link] = {}
        self._gone: set[Incarnation] = set()
        self._outbound: dict[int, Outbound] = {}
        self._inbound: dict[int, Inbound] = {}
        # Longer than the peer remembers what it said, so that nobody waits for an answer to what was dropped here.
        self._early = EarlyMessages(hold_s=offer_timeout_s + 2 * timeout_s)
        self._scrap = ctypes.create_string_buffer(1)
        wire.on_control(self._on_control)

    @property
    def peer(self) -> KvPeer:
        """How others reach this port: what goes into Hello."""
        return self._peer

    @property
    def transfers(self) -> int:
        """How many transfers may still hear from their peer."""
        return len(self._outbound) + len(self._inbound)

    def connect(self, peer: KvPeer) -> None:
        """Get ready for transfers with `peer`; otherwise the first one waits for the wire to connect."""
        if incarnation(peer) not in self._links:
            self._say(peer, Greeting(header=self._header(peer)))

    def peer_gone(self, worker_id: str, epoch: int) -> None:
        """This incarnation is dead: end its transfers, and believe nothing more in its name."""
        gone = (worker_id, epoch)
        self._gone.add(gone)
        link = self._links.pop(gone, None)
        if link is not None:
            link.close()
        for transfer in self._transfers():
            if transfer.peer == gone:
                transfer.peer_gone(f"worker {worker_id} is gone")

    def send(self, transfer_id: int, peer: KvPeer, regions: Sequence[Region]) -> Outbound:
        """Hand over `regions`, to be pushed as they fill; without any, only to be aborted.

        Raises:
            ValueError: `transfer_id` is in use, or too many regions.
        """
        if transfer_id in self._outbound:
            raise ValueError(f"transfer {transfer_id} is already being sent")
        line = self._line(transfer_id, peer, self._outbound)
        outbound = self._outbound[transfer_id] = Outbound(line, regions, self._timing)
        outbound.start(self._held(transfer_id, peer))
        return outbound

    def expect(self, transfer_id: int, peer: KvPeer, regions: Sequence[Region]) -> Inbound:
        """Receive into `regions`.

        Raises:
            ValueError: `transfer_id` is in use, or no regions or too many.
        """
        if transfer_id in self._inbound:
            raise ValueError(f"transfer {transfer_id} is already expected")
        line = self._line(transfer_id, peer, self._inbound)
        inbound = self._inbound[transfer_id] = Inbound(line, regions, self._timing)
        inbound.start(self._held(transfer_id, peer))
        return inbound

    def refuse(self, transfer_id: int, peer: KvPeer, reason: str) -> None:
        """Instead of `expect`: no byte of this transfer will be received."""
        self._held(transfer_id, peer)  # an Offer that waits for nothing any more
        reason = reason[:MAX_REASON_CHARS]
        self._say(peer, Refused(header=self._header(peer), transfer_id=transfer_id, reason=reason))

    def transport_name(self, peer: KvPeer) -> str:
        """What the wire moves pages to and from `peer` with, in its own words."""
        link = self._link(peer)
        return self._wire.describe(link) if link is not None else "unknown"

    def close(self) -> None:
        """End everything; to be called before the loop ends."""
        for transfer in self._transfers():
            transfer.fail("this worker is closing")
        self._links.clear()
        self._wire.close()

    # --- what the peers say ------------------------------------------------------------------------------------------

    def _on_control(self, data: bytes) -> None:
        try:
            message = self._codec.decode(data)
        except ProtocolError:
            self.stale_messages += 1
            return
        header = message.header
        for_us = header.receiver_epoch == self._peer.epoch and header.fingerprint == self._fingerprint
        if not for_us or said_by(header) in self._gone:
            self.stale_messages += 1
            return
        if not isinstance(message, Greeting):
            self._route(message)

    def _route(self, message: Held) -> None:
        table = self._inbound if isinstance(message, Offer | Trailer) else self._outbound
        transfer = table.get(message.transfer_id)
        if transfer is None:
            self._early.hold(message, self._timing.clock.now())
        elif transfer.peer == said_by(message.header):
            transfer.hear(message)
        else:
            self.stale_messages += 1

    def _held(self, transfer_id: int, peer: KvPeer) -> list[Held]:
        """What `peer` has said about a transfer so far."""
        held = self._early.take(transfer_id, self._timing.clock.now())
        from_peer = [message for message in held if said_by(message.header) == incarnation(peer)]
        self.stale_messages += len(held) - len(from_peer)
        return from_peer

    # --- the way to them ---------------------------------------------------------------------------------------------

    def _transfers(self) -> list[Outbound | Inbound]:
        return [*self._outbound.values(), *self._inbound.values()]

    def _line(self, transfer_id: int, peer: KvPeer, table: dict[int, Outbound] | dict[int, Inbound]) -> Line:
        def forget() -> None:
            table.pop(transfer_id, None)

        return Line(
            link=self._link(peer),
            peer=incarnation(peer),
            header=self._header(peer),
            transfer_id=transfer_id,
            piece_bytes=self._piece_bytes,
            scrap=Region(ctypes.addressof(self._scrap), 1),
            encode=self._codec.encode,
            forget=forget,
        )

    def _header(self, peer: KvPeer) -> Header:
        return Header(self._peer.worker_id, self._peer.epoch, peer.epoch, self._fingerprint)

    def _say(self, peer: KvPeer, message: KvMessage) -> None:
        link = self._link(peer)
        if link is not None:
            link.send_control(self._codec.encode(message))

    def _link(self, peer: KvPeer) -> Link | None:
        """The link to this incarnation; None if there is no way to reach it."""
        link = self._links.get(incarnation(peer))
        if link is None and incarnation(peer) not in self._gone:
            with contextlib.suppress(PeerLost):
                link = self._links[incarnation(peer)] = self._wire.connect(peer.address)
        return link
