"""Who listens on a TCP port of this machine?"""

import psutil
from msgspec import Struct


class PortHolder(Struct, frozen=True, kw_only=True):
    pid: int
    name: str


def port_holder(number: int) -> PortHolder | None:
    """Who listens there, if we may know."""
    try:
        for connection in psutil.net_connections(kind="tcp"):
            address = connection.laddr
            if connection.status == psutil.CONN_LISTEN and address and address.port == number and connection.pid:
                return PortHolder(pid=connection.pid, name=psutil.Process(connection.pid).name())
    except psutil.Error:
        return None  # it has ended meanwhile, or belongs to somebody else
    return None
