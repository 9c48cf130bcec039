"""Serve a report on this machine alone, made anew while its run goes on."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from align.schemas.errors import AlignError

LOOPBACK = "127.0.0.1"
NAMES = (LOOPBACK, "localhost")
"""Hosts that a request may name. Another one is a page that has pointed its own name here (DNS rebinding)."""
MOST_CONNECTIONS = 16
TIMEOUT = 10.0
"""Seconds that a connection may stay silent."""
_WATCHED = (
    "run.yaml",
    "manifest.json",
    "advice.json",
    "*/metrics.csv",
    "*/done.json",
    "*/data_report.json",
    "*/samples/*",
)


class ReportServer(ThreadingHTTPServer):
    """A server of one page: ``GET /`` and ``HEAD /`` from this machine, everything else is refused.

    directories: the runs. make: returns the page, given its version; it is called when a file of a run has changed.
    port: 0 takes a free one. Raises AlignError for a port that is taken.
    """

    daemon_threads = True

    def __init__(self, directories: Sequence[Path], make: Callable[[str], str], port: int = 0) -> None:
        self._directories = list(directories)
        self._make = make
        self._making = threading.Lock()
        self._made: tuple[str, bytes] | None = None
        self._free = threading.BoundedSemaphore(MOST_CONNECTIONS)
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except OSError as error:
            what = f"cannot listen on port {port}: {error.strerror}"
            raise AlignError(what, "choose another --port, or none for a free one", where="--serve") from None

    @property
    def url(self) -> str:
        """Return the page's address."""
        return f"http://{LOOPBACK}:{self.server_port}/"

    def version(self) -> str:
        """Return what changes whenever a file that the page shows does."""
        seen = hashlib.sha256()
        for directory in self._directories:
            for pattern in _WATCHED:
                for file in sorted(directory.glob(pattern)):
                    try:
                        found = file.stat()
                    except FileNotFoundError:  # replaced while we look
                        continue
                    seen.update(f"{file} {found.st_size} {found.st_mtime_ns}\n".encode())
        return f'"{seen.hexdigest()[:16]}"'

    def page(self) -> tuple[str, bytes]:
        """Return (version, page); made once for each version, however many ask. Raises AlignError as reading does."""
        with self._making:
            version = self.version()
            if self._made is None or self._made[0] != version:
                self._made = (version, self._make(version).encode())
            return self._made

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread of its own, or close it where too many are open."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection, then make room for another."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    server: ReportServer
    timeout = TIMEOUT
    server_version, sys_version = "align", ""

    def do_GET(self) -> None:
        """Send the page."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Send the page's version alone."""
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        port = self.server.server_port
        hosts = {f"{name}:{port}" for name in NAMES} | (set(NAMES) if port == 80 else set())
        if self.headers.get_all("Host") is None or {*self.headers.get_all("Host", [])} - hosts:
            self._send(403, b"This report is served to its own machine only.\n", "text/plain", "", with_body)
            return
        if self.path != "/":
            self._send(404, b"There is one page here: /\n", "text/plain", "", with_body)
            return
        try:
            if with_body:
                version, body = self.server.page()
            else:
                version, body = self.server.version(), b""
        except AlignError as error:
            self._send(503, f"{error}\n".encode(), "text/plain", "", with_body)
            return
        self._send(200, body, "text/html", version, with_body)

    def _send(self, status: int, body: bytes, kind: str, version: str, with_body: bool) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        if with_body:
            self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        if version:
            self.send_header("ETag", version)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet: a page that follows its run asks every few seconds."""
