"""The lock of a cache entry: one process computes it, the others wait, within bounds and with a report. No torch."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from align.schemas.errors import AlignError
from align.schemas.text import stripped

LONGEST_WAIT = 3600.0
"""Seconds to wait for another process, unless ``ALIGN_CACHE_WAIT`` says how many."""
REPORTED_AFTER = 5.0
"""Seconds of waiting after which it is reported; again whenever the time has doubled."""
POLL = 0.1


@contextmanager
def making(entry: Path) -> Iterator[bool]:
    """Hold the lock of a cache entry while it is made. Yields True if another process had it: look for the entry again.

    Entries are named after what they hold and appear whole, so two processes that make the same one do no harm: the
    lock only saves work. That is why the wait has an end, after which the entry is made here too, and why a cache that
    cannot be locked is no error here: writing to it will say what is wrong.
    """
    place = entry.with_name(f".lock-{entry.name}")
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError:
        yield False
        return
    try:
        locked, waited = _wait(descriptor, entry)
        if locked:
            with suppress(OSError):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        try:
            yield waited
        finally:
            if locked:
                # A process that waits on the removed file and one that makes a new one may both get a lock: only work
                # is then done twice.
                with suppress(OSError):
                    place.unlink()
    finally:
        os.close(descriptor)


def _wait(descriptor: int, entry: Path) -> tuple[bool, bool]:
    """Wait for the lock; return (True if this process now holds it, True if another process held it before)."""
    # Polled, not a blocking flock: only so can the wait be reported and have an end.
    longest, began, report = longest_wait(), time.monotonic(), REPORTED_AFTER
    waits = False
    first = os.environ.get("RANK", "0") == "0"  # in a group the others always wait for rank 0: only it reports
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True, waits
        except BlockingIOError:
            waits = True
        except OSError:  # a file system without locks
            return False, waits
        waited = time.monotonic() - began
        late = waited > longest
        if late or (first and waited > report):
            report = 2 * waited
            holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
            end = "it is made here too" if late else f"at most {longest:g} s (ALIGN_CACHE_WAIT)"
            print(
                stripped(f"{entry}: {holder} is making it; waited {waited:.0f} s, {end}"), file=sys.stderr, flush=True
            )
        if late:
            return False, waits
        time.sleep(POLL)


def longest_wait() -> float:
    """Return how long to wait for another process. Raises AlignError where ``ALIGN_CACHE_WAIT`` is no number."""
    given = os.environ.get("ALIGN_CACHE_WAIT", "")
    try:
        seconds = float(given or LONGEST_WAIT)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise AlignError(f"is {given!r}", "give a number of seconds", where="ALIGN_CACHE_WAIT")
    return seconds
