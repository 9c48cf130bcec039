"""The served report answers its own machine alone; over real connections, all of them bounded in time."""

from __future__ import annotations

import http.client
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from align.core.report.page import render
from align.core.report.serve import LOOPBACK, MOST_CONNECTIONS, ReportServer
from align.schemas.errors import AlignError
from tests.core.reports import write_run

PATIENCE = 10.0


@dataclass
class Served:
    """A server that runs in a thread, and the versions that it made a page of."""

    server: ReportServer
    run: Path
    made: list[str] = field(default_factory=list)

    def ask(self, path: str = "/", host: str | None = "", method: str = "GET") -> tuple[int, dict[str, str], str]:
        """Return status, headers and body of one request. host: its header, the server's own unless given."""
        port = self.server.server_port
        connection = http.client.HTTPConnection(LOOPBACK, port, timeout=PATIENCE)
        try:
            connection.putrequest(method, path, skip_host=True)
            if host is not None:
                connection.putheader("Host", host or f"{LOOPBACK}:{port}")
            connection.endheaders()
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read().decode()
        finally:
            connection.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    run = write_run(tmp_path / "run", metrics="step,epoch,loss\n1,0,3\n")
    made: list[str] = []

    def make(version: str) -> str:
        made.append(version)
        return render([run], "Live", live=version)

    server = ReportServer([run], make)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield Served(server, run, made)
    finally:
        server.shutdown()
        server.server_close()
        thread.join(PATIENCE)


def test_the_page_is_served_to_this_machine_with_headers_that_keep_it_there(served: Served) -> None:
    status, headers, body = served.ask()
    assert status == 200 and "<title>Live</title>" in body
    assert headers["Content-Type"] == "text/html; charset=utf-8" and headers["Cache-Control"] == "no-store"
    assert (headers["X-Frame-Options"], headers["X-Content-Type-Options"]) == ("DENY", "nosniff")
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert not {name for name in headers if name.startswith("Access-Control")}
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', body)
    assert policy and "connect-src 'self'" in policy[1]
    assert served.ask(host=f"localhost:{served.server.server_port}")[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1:1", "localhost.evil.example:{port}", None]
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_request_that_names_another_host_is_refused(served: Served, host: str | None, method: str) -> None:
    """A page in the user's browser can point its own name at 127.0.0.1 (DNS rebinding)."""
    given = host and host.format(port=served.server.server_port)
    status, headers, body = served.ask(host=given, method=method)
    assert status == 403 and "Live" not in body and "ETag" not in headers
    assert served.made == []


def test_two_hosts_are_refused(served: Served) -> None:
    port = served.server.server_port
    with socket.create_connection((LOOPBACK, port), timeout=PATIENCE) as connection:
        connection.sendall(f"GET / HTTP/1.0\r\nHost: {LOOPBACK}:{port}\r\nHost: evil.example\r\n\r\n".encode())
        assert b" 403 " in connection.recv(100)


@pytest.mark.parametrize(
    "path", ["/run.yaml", "/sft/metrics.csv", "/../run.yaml", "/%2e%2e/run.yaml", "/?x=1", "/index.html"]
)
def test_there_is_one_page(served: Served, path: str) -> None:
    status, _, body = served.ask(path)
    assert status == 404 and body == "There is one page here: /\n"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_sent_to_it(served: Served, method: str) -> None:
    assert served.ask(method=method)[0] == 501


def test_it_listens_on_the_loopback_address_alone(served: Served) -> None:
    assert served.server.socket.getsockname()[0] == "127.0.0.1"
    assert served.server.url == f"http://127.0.0.1:{served.server.server_port}/"
    # Linux routes all of 127.0.0.0/8 to this machine: a server on 0.0.0.0 would answer here.
    with pytest.raises(OSError), socket.create_connection(("127.0.0.2", served.server.server_port), timeout=PATIENCE):
        pass


def test_a_port_that_is_taken_is_the_users_mistake(served: Served) -> None:
    with pytest.raises(AlignError, match="cannot listen on port"):
        ReportServer([served.run], lambda version: version, served.server.server_port)


def test_more_connections_than_it_takes_are_closed_and_there_is_room_again(served: Served) -> None:
    address = (LOOPBACK, served.server.server_port)
    held = [socket.create_connection(address, timeout=PATIENCE) for _ in range(MOST_CONNECTIONS)]
    try:
        with socket.create_connection(address, timeout=PATIENCE) as further:
            assert further.recv(1) == b""  # closed, and nothing said
    finally:
        for connection in held:
            connection.close()
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        try:
            assert served.ask()[0] == 200
            return
        except (http.client.HTTPException, OSError):  # its threads have not seen the end of theirs yet
            time.sleep(0.05)
    pytest.fail("no connection became free")


def test_the_version_changes_with_the_files_and_only_then_a_page_is_made(served: Served) -> None:
    status, headers, body = served.ask(method="HEAD")
    first = headers["ETag"]
    assert (status, body, served.made) == (200, "", [])  # asking whether something changed costs no page
    for _ in range(2):
        status, headers, _ = served.ask()
        assert (status, headers["ETag"]) == (200, first)
    assert served.made == [first]
    with open(served.run / "sft" / "metrics.csv", "a") as file:
        file.write("2,0,1.5\n")
    second = served.ask(method="HEAD")[1]["ETag"]
    assert second != first and "3 → 1.5" in served.ask()[2]
    (served.run / "sft" / "samples").mkdir()
    (served.run / "sft" / "samples" / "held-out-000001.parquet").write_bytes(b"")
    third = served.ask(method="HEAD")[1]["ETag"]
    (served.run / "sft" / "export").mkdir()  # nothing of it is on the page
    (served.run / "sft" / "export" / "model.safetensors").write_bytes(b"weights")
    assert third not in (first, second) and served.ask(method="HEAD")[1]["ETag"] == third
    state = os.stat(served.run / "manifest.json")
    os.utime(served.run / "manifest.json", ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert served.ask(method="HEAD")[1]["ETag"] != third


def test_a_run_that_became_unreadable_is_said_and_comes_back(served: Served) -> None:
    text = (served.run / "run.yaml").read_text()
    (served.run / "run.yaml").unlink()
    status, headers, body = served.ask()
    assert status == 503 and "has no run.yaml" in body and "ETag" not in headers
    (served.run / "run.yaml").write_text(text)
    assert served.ask()[0] == 200
