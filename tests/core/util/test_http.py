"""The HTTP client against a real server that misbehaves."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from align.core.util.http import Client, Refused, Unavailable, checked_url, retry_after, secret
from align.schemas.errors import AlignError
from tests.core.servers import Reply, Seen, serving


def after(*replies: Reply) -> Callable[[Seen], Reply]:
    """The replies one after the other, the last one for ever."""
    left = list(replies)
    return lambda _seen: left.pop(0) if len(left) > 1 else left[0]


def test_json_out_json_in_with_the_key_as_a_bearer_token() -> None:
    with serving(lambda seen: Reply({"got": seen.content})) as server, Client(server.url + "/v1/", key="k") as client:
        assert client.post("/things", {"a": [1, None]}) == {"got": {"a": [1, None]}}
        assert client.get("/things") == {"got": None}
        post, get = server.seen
        assert (post.method, post.path, get.method) == ("POST", "/v1/things", "GET")
        assert post.headers["Authorization"] == "Bearer k"


def test_an_empty_body_is_an_empty_object() -> None:
    with serving(lambda _seen: Reply(b"")) as server, Client(server.url) as client:
        assert client.post("/x") == {}


def test_it_waits_as_long_as_the_server_asks_and_tries_again() -> None:
    replies = after(Reply({"error": {"message": "slow down"}}, 429, {"Retry-After": "1"}), Reply({"ok": 1}))
    with serving(replies) as server, Client(server.url) as client:
        began = time.monotonic()
        assert client.post("/x") == {"ok": 1}
        assert time.monotonic() - began >= 1.0 and len(server.seen) == 2


def test_a_server_that_asks_for_too_long_is_given_up_at_once() -> None:
    replies = after(Reply({"error": "quota"}, 429, {"Retry-After": "86400"}))
    with serving(replies) as server, Client(server.url) as client:
        with pytest.raises(Unavailable, match="answered 429: quota") as error:
            client.post("/x")
        assert error.value.status == 429 and len(server.seen) == 1


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply({"error": {"message": "engine is dead"}}, 500), "answered 500: engine is dead"),
        (Reply({"detail": "try later"}, 503), "answered 503: try later"),
        (Reply(b"<html>proxy</html>"), "no JSON object: <html>proxy</html>"),
        (Reply(b"[1, 2]"), r"no JSON object: \[1, 2\]"),
        (Reply(b"[" * 100_000), "no JSON object"),
        (Reply(b'{"n": ' + b"9" * 5000 + b"}"), "no JSON object"),
        (Reply(b"x" * 2**19), "more than 262144 bytes"),
        (Reply(b"x", headers={"Content-Length": "9"}, hang_up=True), "cannot be reached: "),
        (Reply(hang=30), "no answer within 0.3 s"),
        (Reply(b"{}" + b" " * 1000, drip=0.01), "no answer within 0.3 s"),
    ],
    ids=["500", "503", "html", "list", "deep", "number", "huge", "hang-up", "hang", "drip"],
)
def test_what_may_pass_is_tried_again_and_then_said(reply: Reply, said: str) -> None:
    with serving(lambda _seen: reply) as server, Client(server.url, timeout=0.3, retries=1, limit=2**18) as client:
        with pytest.raises(Unavailable, match=said) as error:
            client.post("/x")
        assert len(server.seen) == 2 and server.url in str(error.value)


def test_no_server_at_all() -> None:
    with serving(lambda _seen: Reply()) as server:
        url = server.url
    with Client(url, retries=0) as client, pytest.raises(Unavailable, match="cannot be reached"):
        client.get("/x")


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_refusal_is_not_tried_again(status: int) -> None:
    with serving(lambda _seen: Reply({"message": "no such model"}, status)) as server, Client(server.url) as client:
        with pytest.raises(Refused, match=f"answered {status}: no such model") as error:
            client.post("/x")
        assert error.value.status == status and len(server.seen) == 1


def test_a_redirect_is_not_followed() -> None:
    with serving(lambda _seen: Reply()) as other:
        away = Reply(status=307, headers={"Location": other.url + "/x"})
        with (
            serving(lambda _seen: away) as server,
            Client(server.url, key="k") as client,
            pytest.raises(Refused, match=f"go to {other.url}/x"),
        ):
            client.post("/x")
        assert other.seen == []


def test_a_server_that_repeats_the_key_does_not_get_it_into_the_message() -> None:
    reply = Reply({"error": {"message": "Incorrect API key provided: sk-canary-1"}}, 401)
    with serving(lambda _seen: reply) as server, Client(server.url, key="sk-canary-1") as client:
        with pytest.raises(Refused) as error:
            client.get("/x")
        assert "sk-canary-1" not in str(error.value) + repr(error.value) + repr(client)
        assert "provided: [key]" in str(error.value)


def test_many_at_once_and_cancelled() -> None:
    others = set(threading.enumerate())
    with serving(lambda seen: Reply({"n": seen.content}, hang=60 if seen.content == 9 else 0.2)) as server:
        with Client(server.url) as client:
            began = time.monotonic()
            futures = [client.submit("POST", "/x", n) for n in range(10)]
            assert [future.result() for future in futures[:9]] == [{"n": n} for n in range(9)]
            assert futures[9].cancel()
            with pytest.raises(CancelledError):
                futures[9].result()
            assert time.monotonic() - began < 30
        ours = [thread for thread in threading.enumerate() if thread not in others and thread.name == "align-http"]
        assert not [thread for thread in ours if _lives(thread)]


THOUSAND = """
import resource, sys
from align.core.util.http import Client
resource.setrlimit(resource.RLIMIT_NOFILE, (320, 320))
with Client(sys.argv[1], retries=0) as client:
    futures = [client.submit("POST", "/x", {"n": n}) for n in range(1000)]
    print(sum(future.result()["n"] for future in futures))
"""


def test_a_thousand_requests_share_the_descriptors_there_are() -> None:
    with serving(lambda seen: Reply(seen.content, hang=0.05)) as server:
        done = subprocess.run([sys.executable, "-c", THOUSAND, server.url], capture_output=True, text=True)
        assert done.stdout == f"{sum(range(1000))}\n", done.stderr


def _lives(thread: threading.Thread) -> bool:
    thread.join(timeout=30)
    return thread.is_alive()


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/v1",
        "https://user:word@example.org",
        "https://word@example.org",
        "ftp://127.0.0.1",
        "example.org/v1",
        "https://",
        "https://example.org/v1?key=1",
        "http://127.0.0.1.example.org",
        "http://10.0.0.1:8000",
    ],
)
def test_addresses_that_are_refused(url: str) -> None:
    with pytest.raises(AlignError) as error:
        checked_url(url)
    assert "word" not in str(error.value).replace("password", "")


@pytest.mark.parametrize(
    ("url", "local"),
    [("https://example.org/v1/", False), ("http://localhost:1/v1", True), ("http://[::1]:80", True)],
)
def test_addresses_that_are_taken(url: str, local: bool) -> None:
    assert checked_url(url) == (url.rstrip("/"), local)


def test_secrets_come_from_environment_or_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", " sk-1\n")
    monkeypatch.setenv("NOTHING", "")
    (tmp_path / "key").write_text("sk-2\n")
    (tmp_path / "two").write_text("sk 2\n")
    assert (secret(), secret(env="A_KEY"), secret(file=tmp_path / "key")) == (None, "sk-1", "sk-2")
    for wrong in ({"env": "NOTHING"}, {"env": "ABSENT"}, {"file": tmp_path / "no"}, {"file": tmp_path / "two"}):
        with pytest.raises(AlignError):
            secret(**wrong)
    with pytest.raises(AlignError, match="both"):
        secret("A_KEY", tmp_path / "key")


def test_retry_after() -> None:
    assert [retry_after(value) for value in (None, "7", " 0 ", "soon", "-1", "1.5")] == [None, 7, 0, None, None, None]
    soon = datetime.now(UTC) + timedelta(seconds=30)
    seconds = retry_after(format_datetime(soon, usegmt=True))
    assert seconds is not None and 25 < seconds <= 30
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
