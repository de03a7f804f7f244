"""What can go wrong between processes, in this project's own words?

Foreign exceptions (zmq, UCXX, msgspec) are mapped to these at the adapter that raises them, and nowhere else.
"""


class TransportError(Exception):
    """Base of everything below; never raised itself."""


class ProtocolError(TransportError):
    """Bytes that are not a message of this link, or a message that is not allowed now."""


class ProtocolMismatch(ProtocolError):
    """The peer speaks another protocol version or another KV layout."""


class PeerLost(TransportError):
    """The peer process is gone, or is treated as gone."""


class TransferRefused(TransportError):
    """The peer answered that this transfer will not happen; no byte of it moved."""


class TransferFailed(TransportError):
    """The transfer ended without all its bytes."""
