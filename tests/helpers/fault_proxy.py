"""A proxy between a client and an HTTP server that makes the faults of slow, failing and lying stores."""

import http.client
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

FAULTS = (
    "status 500",
    "status 503",
    "status 429",
    "refused",
    "cut",
    "short",
    "bit flip",
    "shifted",
    "garbage",
    "stall",
)
_STALL_SECONDS = 0.8
_HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length"}


@dataclass
class Behaviour:
    """What the proxy does; may be changed while it runs.

    latency_seconds: before each answer. bytes_per_second: of all answers together; 0 is no limit.
    fault_rate: the share of requests of `methods` that get one of `faults`; drawn by a seeded generator.
    Counted are requests, bytes of the answers' bodies, and the faults made, by kind.
    """

    latency_seconds: float = 0.0
    bytes_per_second: float = 0.0
    fault_rate: float = 0.0
    faults: tuple[str, ...] = FAULTS
    methods: tuple[str, ...] = ("GET",)
    seed: int = 0
    requests: int = 0
    body_bytes: int = 0
    made: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self._lock = threading.Lock()
        self._free_at = 0.0
        self._countdown = 0
        self._then: Callable[[], None] = lambda: None

    def on_next_requests(self, requests: int, then: Callable[[], None]) -> None:
        """Call `then` once, after so many further requests."""
        with self._lock:
            self._countdown, self._then = requests, then

    def next_fault(self, method: str) -> str | None:
        """Counts a request, and says what is to go wrong with it."""
        with self._lock:
            self.requests += 1
            self._countdown -= 1
            due = self._countdown == 0
        if due:
            threading.Thread(target=self._then, daemon=True).start()  # it may send requests through this proxy
        with self._lock:
            if method not in self.methods or self._rng.random() >= self.fault_rate:
                return None
            return self._rng.choice(self.faults)

    def made_fault(self, fault: str) -> None:
        """A fault reached the client."""
        with self._lock:
            self.made[fault] += 1

    def drawn(self, below: int) -> int:
        """A position."""
        with self._lock:
            return self._rng.randrange(below)

    def wait_for(self, size: int) -> None:
        """Until the line has carried so many bytes."""
        with self._lock:
            self.body_bytes += size
            if not self.bytes_per_second:
                return
            self._free_at = max(self._free_at, time.monotonic()) + size / self.bytes_per_second
            wait = self._free_at - time.monotonic()
        time.sleep(max(0.0, wait))


@contextmanager
def proxy(upstream: str, behaviour: Behaviour) -> Iterator[str]:
    """A proxy in front of the server at the URL `upstream`; gives its own URL."""
    address = urlsplit(upstream)
    assert address.hostname and address.port

    class Handler(_Handler):
        host, port, behaves = address.hostname, address.port, behaviour

    server = _Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    host = ""
    port = 0
    behaves = Behaviour()

    def handle_one_request(self) -> None:
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().handle_one_request()

    def _serve(self) -> None:
        content = self.rfile.read(int(self.headers.get("content-length", 0)))
        fault = self.behaves.next_fault(self.command)
        time.sleep(self.behaves.latency_seconds)
        if fault == "refused":
            self.behaves.made_fault(fault)
            self.close_connection = True
            return
        if fault is not None and fault.startswith("status"):
            self.behaves.made_fault(fault)
            self._answer(int(fault.split()[1]), {}, b"<Error><Code>SlowDown</Code></Error>")
            return
        upstream = http.client.HTTPConnection(self.host, self.port, timeout=60)
        try:
            upstream.request(self.command, self.path, content, dict(self.headers.items()))
            answer = upstream.getresponse()
            headers = {name: value for name, value in answer.getheaders() if name.lower() not in _HOP_BY_HOP}
            body = answer.read()
            length = answer.getheader("content-length")
        finally:
            upstream.close()
        if self.command == "HEAD":
            self._answer(answer.status, headers, b"", length)
        elif fault is None or answer.status >= 300 or not body:
            self.behaves.wait_for(len(body))
            self._answer(answer.status, headers, body)
        else:
            self.behaves.made_fault(fault)
            self._spoil(fault, answer.status, headers, body)

    def _spoil(self, fault: str, status: int, headers: dict[str, str], body: bytes) -> None:
        """An answer with something wrong in its body."""
        at = self.behaves.drawn(len(body))
        if fault == "cut":  # the connection breaks in the middle
            self._answer(status, headers, body[:at], str(len(body)))
            self.close_connection = True
        elif fault == "short":  # fewer bytes than asked for, and all headers say so consistently
            self._answer(status, headers, body[:at])
        elif fault == "bit flip":
            self._answer(status, headers, body[:at] + bytes([body[at] ^ 1 << at % 8]) + body[at + 1 :])
        elif fault == "shifted":  # bytes of another place
            self._answer(status, headers, body[at:] + body[:at] if at else body[::-1])
        elif fault == "garbage":
            self._answer(status, headers, b"<html>" * (len(body) // 6) + bytes(len(body) % 6))
        elif fault == "stall":
            half = len(body) // 2
            self._answer(status, headers, body[:half], str(len(body)))
            self.wfile.flush()
            time.sleep(_STALL_SECONDS)
            self.wfile.write(body[half:])
        else:
            raise AssertionError(fault)

    def _answer(self, status: int, headers: dict[str, str], body: bytes, length: str | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""
