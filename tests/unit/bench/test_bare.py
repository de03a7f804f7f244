"""Does the bare client ask both ways, first the one and then the other?"""

import socketserver
import threading
from contextlib import ExitStack

from bench.compat.bare import Ways, wait

BODY = '{"a": "question"}'
ANSWER = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\na\r\ndata: {}\n\n\r\n0\r\n\r\n"


def server(name: str, asked: list[str]) -> socketserver.TCPServer:
    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            heard = b""
            while data := self.request.recv(1 << 16):
                heard += data
                if heard.endswith(BODY.encode()):
                    asked.append(name)
                    heard = b""
                    self.request.sendall(ANSWER)

    served = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    served.daemon_threads = True
    return served


def test_who_is_asked_first_alternates_and_the_first_round_is_left_out() -> None:
    asked: list[str] = []
    with ExitStack() as stack:
        servers = [stack.enter_context(server(name, asked)) for name in ("direct", "tapped")]
        for one in servers:
            threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
            stack.callback(one.shutdown)
        waited = wait(Ways((servers[0].server_address[1], servers[1].server_address[1]), "/v1", BODY, 3))
    assert asked == ["direct", "tapped", "tapped", "direct"] * 2
    assert len(waited.first_s) == len(waited.whole_s) == 3
    for first, whole in zip(waited.first_s, waited.whole_s, strict=True):
        assert 0.0 < first[0] <= whole[0]
        assert 0.0 < first[1] <= whole[1]
