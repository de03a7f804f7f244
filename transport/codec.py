"""How does a message become bytes, and bytes a message?

One encoder for everything, one decoder per direction of a link, built once. Whatever is not a message of that link is a
`ProtocolError`; msgspec checks types, bounds, unknown fields and tags while it decodes.
"""

from typing import Generic, TypeVar

import msgspec

from transport.errors import ProtocolError
from transport.messages import client, launcher, worker

T = TypeVar("T")
_MAX_ERROR_CHARS = 300


class Codec(Generic[T]):
    """Encodes any message; decodes the messages of one direction of one link."""

    def __init__(self, receives: object) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(receives)

    def encode(self, message: object) -> bytes:
        return self._encoder.encode(message)

    def decode(self, data: bytes | memoryview) -> T:
        """
        Raises:
            ProtocolError: `data` is not a message of this link; the text says which field is wrong.
        """
        try:
            return self._decoder.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(str(error)[:_MAX_ERROR_CHARS]) from error


def coordinator_side_of_client_link() -> Codec[client.ToCoordinator]:
    return Codec(client.ToCoordinator)


def client_side() -> Codec[client.ToClient]:
    return Codec(client.ToClient)


def coordinator_side_of_worker_link() -> Codec[worker.ToCoordinator]:
    return Codec(worker.ToCoordinator)


def worker_side() -> Codec[worker.ToWorker]:
    return Codec(worker.ToWorker)


def coordinator_side_of_launcher_link() -> Codec[launcher.ToCoordinator]:
    return Codec(launcher.ToCoordinator)


def launcher_side() -> Codec[launcher.ToLauncher]:
    return Codec(launcher.ToLauncher)


def generate_request(data: bytes | memoryview | msgspec.Raw) -> client.GenerateRequest:
    """
    Raises:
        ProtocolError: not a valid request; the text names the field.
    """
    try:
        return msgspec.msgpack.decode(data, type=client.GenerateRequest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(str(error)[:_MAX_ERROR_CHARS]) from error
