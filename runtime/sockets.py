"""How does a process get an address to listen on?"""

import socket


def bound_socket(host: str, port: int) -> socket.socket:
    """A TCP socket bound to an address, not yet listening; connections that have ended recently are no obstacle.

    Raises:
        OSError: the address is taken, or is not one of this machine.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound
