"""Which transport did UCX choose for the bulk data of an endpoint?

UCX's own description of the endpoint (`ucp_ep_print_info`, a public function that UCXX does not wrap) has a table for
each kind of operation. The last row of the one for tagged sends is the protocol for the largest messages, and names its
transport. It is written to memory: nothing is printed, no file is made. Called on the loop thread, 0.2 ms.
"""

import ctypes
import re

UNKNOWN = "unknown"

_TABLE = re.compile(r"tagged message by ucp_tag_send\* from (?P<memory>\S+)")
_ROW = re.compile(r"\|\s*\S+\.\.inf \|[^|]*\|\s*(?P<transports>[^|]*?)\s*\|")
_TRANSPORT = re.compile(r"([a-z]\w*)/")


def endpoint_report(handle: int) -> str:
    """UCX's description of an endpoint; empty where the C library or UCX cannot give one.

    Args:
        handle: address of the `ucp_ep`, which must not be closed.
    """
    libc = ctypes.CDLL(None)
    try:
        print_info = ctypes.CDLL("libucp.so.0").ucp_ep_print_info  # loaded already, by UCXX
        open_memstream = libc.open_memstream
    except (OSError, AttributeError):
        return ""
    print_info.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    print_info.restype = None
    open_memstream.restype = ctypes.c_void_p
    text, length = ctypes.c_void_p(), ctypes.c_size_t()
    stream = ctypes.c_void_p(open_memstream(ctypes.byref(text), ctypes.byref(length)))
    if not stream:
        return ""
    print_info(handle, stream)
    libc.fclose(stream)
    report = ctypes.string_at(text, length.value).decode(errors="replace")
    libc.free(text)
    return report


def bulk_transport(report: str) -> str:
    """The transport of the largest tagged messages, such as `sysv`, `tcp` or `cuda_ipc`.

    That of messages from GPU memory if there are any; several that share the work are joined with `+`.
    """
    found: dict[str, str] = {}
    memory: str | None = None
    for line in report.splitlines():
        if table := _TABLE.search(line):
            memory = table["memory"]
        elif memory is not None and (row := _ROW.search(line)):
            names = dict.fromkeys(_TRANSPORT.findall(row["transports"]))
            found[memory] = "+".join(names) or UNKNOWN
            memory = None
    gpu = [transport for memory, transport in found.items() if memory != "host"]
    return gpu[0] if gpu else found.get("host", UNKNOWN)
