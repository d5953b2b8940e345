"""A proxy before an S3 server that breaks chosen requests, as networks and servers do."""

import http.client
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

UPSTREAM_TIMEOUT_S = 60

ERROR = """<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>{code}</Code><Message>{message}</Message><RequestId>1</RequestId></Error>"""


@dataclass
class Fault:
    """What happens to requests.

    Attributes:
        kind: ``answer``; ``reset`` before a byte of the body is read; ``cut`` in the middle of the
            body; ``lose`` the reply of what the server did; ``cut-reply`` in the middle of it;
            ``hang`` until the client gives up.
        count: how many requests more; None for all until `FaultProxy.heal`.
        method: of those meant; empty for any.
        path: what path and query hold, decoded.
        status, code: of an answer.
        then: called when one has been hit and, with ``lose``, passed on.
    """

    kind: str
    count: int | None = 1
    method: str = ""
    path: str = ""
    status: int = 500
    code: str = "InternalError"
    then: Callable[[], None] = lambda: None

    def takes(self, method: str, path: str) -> bool:
        return self.count != 0 and self.method in ("", method) and self.path in unquote(path)


class FaultProxy:
    """Listens on a free port of loopback and passes on to ``upstream``, a host and port.

    Attributes:
        requests: method and decoded path of all that came since the last `heal`.
        hits: how many of them a fault was for.
    """

    def __init__(self) -> None:
        self.upstream = ("127.0.0.1", 0)
        self.requests: list[tuple[str, str]] = []
        self.hits = 0
        self.closing = threading.Event()
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def inject(self, kind: str, **details: object) -> None:
        """Add a `Fault`; the first one that takes a request is the one that happens."""
        with self._lock:
            self._faults.append(Fault(kind, **details))  # type: ignore[arg-type]

    def heal(self) -> None:
        """Forget all faults and counts."""
        with self._lock:
            self._faults.clear()
            self.requests, self.hits = [], 0

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def draw(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self.requests.append((method, unquote(path)))
            for fault in self._faults:
                if fault.takes(method, path):
                    fault.count = None if fault.count is None else fault.count - 1
                    self.hits += 1
                    return fault
            return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    proxy: FaultProxy
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def handle_expect_100(self) -> bool:
        return True  # only once the fault is drawn

    def _handle(self) -> None:
        fault = self.proxy.draw(self.command, self.path)
        kind = fault.kind if fault else ""
        if kind == "hang":
            self._wait_for_client()
            return
        if kind == "reset":
            self._reset()
            return
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            self.close_connection = True  # the body stays unread
            self._reply(411, [], b"")  # Length Required, as S3 itself answers
            return
        length = int(self.headers.get("Content-Length", 0))
        if kind == "cut":
            self.rfile.read(length // 2)
            self._reset()
            return
        body = self.rfile.read(length)
        if fault and kind == "answer":
            text = ERROR.format(code=fault.code, message=f"injected {fault.code}").encode()
            self._reply(fault.status, [("Content-Type", "application/xml")], text)
            fault.then()
            return
        status, headers, reply = self._pass_on(body)
        if fault:
            fault.then()
        if kind == "lose":
            self._reset()
        elif kind == "cut-reply":
            self._reply(status, headers, reply, sent=len(reply) // 2)
            self._reset()
        else:
            self._reply(status, headers, reply)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle  # noqa: N815

    def _pass_on(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(*self.proxy.upstream, timeout=UPSTREAM_TIMEOUT_S)
        try:
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()
        finally:
            connection.close()

    def _reply(
        self, status: int, headers: list[tuple[str, str]], body: bytes, sent: int | None = None
    ) -> None:
        self.send_response_only(status)
        named = {name.lower() for name, _ in headers}
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding"):
                self.send_header(name, value)
        if "content-length" not in named:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:sent])

    def _wait_for_client(self) -> None:
        self.connection.settimeout(0.05)
        while not self.proxy.closing.is_set():
            try:
                if not self.connection.recv(1 << 16):
                    break
            except TimeoutError:
                continue
        self.close_connection = True

    def _reset(self) -> None:
        self.wfile.flush()
        linger = struct.pack("ii", 1, 0)  # RST instead of FIN
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()
        self.close_connection = True
