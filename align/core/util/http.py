"""One small HTTP client for JSON services: every wait bounded, every body bounded, secrets kept out of messages.

Used for what runs beside us (a vLLM server) and for what runs elsewhere (a judge behind an OpenAI-compatible API).
Requests run on the client's own event loop in a daemon thread. So any number may be under way (beyond
``CONNECTIONS`` they queue, which counts as time of the try), the time-out holds for a server that drips single bytes
too, and a request can be cancelled.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import random
import re
import threading
import time
from concurrent.futures import Future
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx2

from align.schemas.errors import AlignError
from align.schemas.text import redacted

CONNECT = 10.0
"""Most seconds for a connection, TLS included."""
LONGEST_WAIT = 60.0
"""Most seconds between two tries. A server that asks for more is given up at once."""
CONNECTIONS = 256
"""Connections open at once; further requests wait for one. A process commonly has 1,024 descriptors for everything."""
QUOTED = 600
"""Characters of a server's own words that a message quotes."""
_ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
_JITTER = random.Random()  # its own: training's random numbers do not depend on a server's moods


class Failed(AlignError):
    """A request that brought no answer. status: of the last response, None without one. text: what the server said."""

    def __init__(self, what: str, fix: str = "", *, where: str, status: int | None = None, text: str = "") -> None:
        super().__init__(what, fix, where=where)
        self.status, self.text = status, text


class Refused(Failed):
    """The server understood and said no (a status of 300 to 499 but 408 and 429): asking again would not help."""


class Unavailable(Failed):
    """No try brought an answer: no connection, none in time, none that is a JSON object, or 408, 429, 500 and above.

    wait: seconds that the server asks for (Retry-After), None where it asks for none. late: there was none in time.
    """

    wait: float | None = None
    late: bool = False


class Client:
    """JSON over HTTP at one base address.

    base_url  ``https://HOST[:PORT][/PATH]``; plain http only to this machine. No user name, password, query.
    key       sent as a bearer token; see ``secret``
    timeout   seconds for one try, from connecting to the last byte
    retries   further tries where a request is ``Unavailable``, after 0.5, 1, 2, ... seconds with jitter, or as long as
              the server asks for (Retry-After, up to ``LONGEST_WAIT``). A try may have cost something even so.
    limit     most bytes of a response

    Redirects are not followed: they are ``Refused`` with their target. Safe to use from several threads. Proxies of the
    environment are used, but never for this machine.
    """

    def __init__(
        self,
        base_url: str,
        *,
        key: str | None = None,
        timeout: float = 60.0,
        retries: int = 4,
        limit: int = 2**26,
    ) -> None:
        self.base_url, local = checked_url(base_url)
        self.timeout, self.retries, self.limit = timeout, retries, limit
        self._key = key
        headers = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "align"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        self._loop = asyncio.new_event_loop()
        self._http = httpx2.AsyncClient(
            headers=headers,
            timeout=httpx2.Timeout(None, connect=CONNECT),
            limits=httpx2.Limits(max_connections=CONNECTIONS, max_keepalive_connections=32),
            trust_env=not local,
        )
        self._closed = False
        threading.Thread(target=self._run, name="align-http", daemon=True).start()

    def get(self, path: str, *, timeout: float | None = None) -> dict[str, Any]:
        """The JSON object at ``path``; an empty body is {}. Raises ``Refused`` or ``Unavailable``."""
        return _wait(self.submit("GET", path, timeout=timeout))

    def post(self, path: str, content: Any = None, *, timeout: float | None = None) -> dict[str, Any]:
        """The JSON object answered to ``content``; an empty body is {}. Raises ``Refused`` or ``Unavailable``."""
        return _wait(self.submit("POST", path, content, timeout=timeout))

    def submit(
        self, method: str, path: str, content: Any = None, *, timeout: float | None = None
    ) -> Future[dict[str, Any]]:
        """Begin a request. Cancelling the future closes its connection."""
        if self._closed:
            raise RuntimeError("the client is closed")
        work = self._tries(method, self.base_url + path, content, timeout or self.timeout)
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        """End what is under way; safe to call twice."""
        if not self._closed:
            self._closed = True
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(timeout=CONNECT)
            self._loop.call_soon_threadsafe(self._loop.stop)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        self._loop.run_forever()
        self._loop.close()

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._http.aclose()

    async def _tries(self, method: str, url: str, content: Any, timeout: float) -> dict[str, Any]:
        for number in range(self.retries + 1):
            try:
                async with asyncio.timeout(timeout):
                    return await self._try(method, url, content)
            except TimeoutError:
                failed, wait = Unavailable(f"gave no answer within {timeout:g} s", where=url), None
                failed.late = True
            except httpx2.HTTPError as error:
                # some of these have no text of their own
                reason = self.redacted(str(error)) or type(error).__name__
                failed, wait = Unavailable(f"cannot be reached: {reason}", where=url), None
            except _Again as again:
                failed, wait = again.failed, again.wait
                failed.wait = wait
            if wait is None:
                wait = _JITTER.uniform(0.5, 1.0) * 2.0 ** min(number, 5)
            if number == self.retries or wait > LONGEST_WAIT:
                raise failed
            await asyncio.sleep(wait)
        raise AssertionError("unreachable")

    async def _try(self, method: str, url: str, content: Any) -> dict[str, Any]:
        async with self._http.stream(method, url, json=content) as response:
            body = bytearray()
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > self.limit:
                    raise _Again(Unavailable(f"sent more than {self.limit} bytes", where=url))
        status = response.status_code
        if 200 <= status < 300:
            try:
                found = json.loads(body) if body else {}
            except (ValueError, RecursionError):
                found = None
            if isinstance(found, dict):
                return found
            text = self._words(body)
            raise _Again(Unavailable(f"answered something that is no JSON object: {text}", where=url, text=text))
        text = self._words(body)
        if status in (408, 429) or status >= 500:
            failed = Unavailable(f"answered {status}: {text}", where=url, status=status, text=text)
            raise _Again(failed, retry_after(response.headers.get("Retry-After")))
        fix = ""
        if 300 <= status < 400:
            location = self.redacted(shown_url(response.headers.get("Location", "")))
            text, fix = f"go to {location or 'nowhere'}", "give the address that it leads to"
        elif status in (401, 403):
            fix = "check the key"
        raise Refused(f"answered {status}: {text}", fix, where=url, status=status, text=text)

    def _words(self, body: bytes | bytearray) -> str:
        """Return the error message of a server, without the key should it repeat it."""
        text = bytes(body[: 2**16]).decode("utf-8", "replace")
        try:
            found = json.loads(text)
            error = found.get("error", found)
            text = str(error.get("message") or error.get("detail") or text) if isinstance(error, dict) else str(error)
        except (ValueError, AttributeError, RecursionError):
            pass
        text = " ".join(text.split())
        return self.redacted(text)[:QUOTED] or "(nothing)"

    def redacted(self, text: str) -> str:
        """Return a server's text without this client's key, which it may repeat, and without what looks like a key."""
        return redacted(text.replace(self._key, "[key]") if self._key else text)


class _Again(Exception):
    """A try failed in a way that another may fix. wait: seconds that the server asks for."""

    def __init__(self, failed: Unavailable, wait: float | None = None) -> None:
        self.failed, self.wait = failed, wait


def checked_url(url: str) -> tuple[str, bool]:
    """An address that may be used, without a slash at its end, and whether it is on this machine.

    Raises AlignError for credentials in it, for plain http to another machine, and for what is no address.
    """
    try:
        found = httpx2.URL(url)
    except (httpx2.InvalidURL, TypeError) as error:
        raise AlignError(f"is no address: {redacted(str(error))}", "write https://HOST[:PORT]/v1") from None
    if found.userinfo:
        raise AlignError("the address holds a user name or a password", "give the key by environment variable or file")
    if found.scheme not in ("http", "https") or not found.host or found.query or found.fragment:
        raise AlignError(f"{shown_url(url)!r} is no address of a service", "write https://HOST[:PORT]/v1")
    local = is_loopback(found.host)
    if found.scheme == "http" and not local:
        raise AlignError(
            f"{url!r} would send prompts and key unencrypted to another machine",
            "use https, or reach it through a tunnel that ends on this machine",
        )
    return url.rstrip("/"), local


def shown_url(url: str) -> str:
    """Return an address as a message may show it, without user, password, query, fragment and what looks like a token.

    A query or a fragment often carries a token. So may a part of the path: one of 20 or more characters with a digit
    among them is taken for a token.
    """
    without_user = re.sub(r"(?<=//)[^/?#]*@", "", url)
    path, *left_out = re.split("[?#]", without_user, maxsplit=1)
    path = re.sub(r"(?<=/)(?=[^/]*\d)[\w.~%+=-]{20,}", _ELLIPSIS, path)
    return f"{path[:QUOTED]}?{_ELLIPSIS}" if left_out else path[:QUOTED]


def is_loopback(host: str) -> bool:
    """Return True if a host name or address is this machine itself."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def secret(env: str | None = None, file: str | Path | None = None) -> str | None:
    """Return an API key from an environment variable or a file, never out of a run file; None where neither is named.

    Raises AlignError where it is missing, empty or no single word.
    """
    if env is not None and file is not None:
        raise AlignError("names both an environment variable and a file for the key", "name one")
    if env is not None:
        found, where = os.environ.get(env, ""), f"environment variable {env}"
    elif file is not None:
        where = str(file)
        try:
            found = Path(file).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise AlignError(f"the key cannot be read: {reason}", where=where) from None
    else:
        return None
    found = found.strip()
    if not found or not found.isascii() or not found.isprintable() or " " in found:
        raise AlignError("holds no API key (one word)", "put the key there", where=where)
    return found


def retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for (RFC 9110 10.2.3: seconds or a date), None where it says nothing."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.fromtimestamp(time.time(), UTC)).total_seconds())


def _wait(future: Future[dict[str, Any]]) -> dict[str, Any]:
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise
