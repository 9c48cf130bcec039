"""A real HTTP server on this machine that answers as a test tells it to, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """One response. hang: seconds before it; drip: seconds between the body's bytes."""

    body: bytes | dict[str, Any] = b"{}"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    hang: float = 0.0
    drip: float = 0.0
    hang_up: bool = False


@dataclass
class Seen:
    """One request."""

    method: str
    path: str
    headers: dict[str, str]
    content: Any


class Server:
    """What ``serving`` gives: its address, and every request so far."""

    def __init__(self, url: str) -> None:
        self.url, self.seen = url, list[Seen]()
        self.over = threading.Event()


@contextmanager
def serving(answer: Callable[[Seen], Reply]) -> Iterator[Server]:
    """A server on a free port of 127.0.0.1 that gives each request what ``answer`` says."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _any(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            seen = Seen(self.command, self.path, dict(self.headers), json.loads(raw) if raw else None)
            server.seen.append(seen)
            reply = answer(seen)
            server.over.wait(reply.hang)
            if reply.hang_up:
                self.close_connection = True
                return
            body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            try:
                self.send_response(reply.status)
                for name, value in ({"Content-Length": str(len(body))} | reply.headers).items():
                    self.send_header(name, value)
                self.end_headers()
                for piece in [body] if not reply.drip else [bytes([b]) for b in body]:
                    if server.over.wait(reply.drip):
                        return
                    self.wfile.write(piece)
                    self.wfile.flush()
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        do_GET = do_POST = _any

        def log_message(self, *_: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 512

        def handle_error(self, *_: object) -> None:
            pass

    http = Quiet(("127.0.0.1", 0), Handler)
    server = Server(f"http://127.0.0.1:{http.server_port}")
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server
    finally:
        server.over.set()
        http.shutdown()
        http.server_close()
