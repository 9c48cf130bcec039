"""The structured log of one process: a JSON object a line, complete up to the moment in which the process is killed.

    {"time": "2026-11-30T17:40:02.113Z", "event": "step", "rank": 0, "host": "gpu-7", "step": 12, "sha256": "8c1b..."}

Each line is one write of the system's, without a buffer of ours, so a SIGKILL loses none. (Without a flush to the disk
either: the machine's death may cost the last seconds.) A line carries its own checksum. No torch.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from align.core.util.atomic_files import sealed, verified

LOGS = "logs"
"""The folder in a stage's directory."""
LARGEST = 4 * 2**20
"""Bytes of a file after which it is renamed and a new one begun; the one before that is removed."""


def place(stage: Path, rank: int) -> Path:
    """Return the log of a rank; the part before it, where it has grown that long, is ``rank-0.1.jsonl``."""
    return stage / LOGS / f"rank-{rank}.jsonl"


class EventLog:
    """Appends events to one file, whose only writer it is. A disk that refuses a line costs only that line."""

    def __init__(self, path: Path, rank: int, host: str) -> None:
        self.path = path
        self._facts = {"rank": rank, "host": host}
        self._lock = threading.Lock()
        self._file: int | None = None
        self._size = 0
        self._refused = 0

    def write(self, event: str, **fields: Any) -> None:
        """Append an event, with the time; fields that are None are left out."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        known = {name: value for name, value in fields.items() if value is not None}
        line = sealed({"time": now, "event": event, **self._facts, **known}) + b"\n"
        # Not forever: another thread may hang in a write, and a process that gives up must not wait for it.
        if not self._lock.acquire(timeout=1.0):
            return
        try:
            self._append(line)
        except OSError:  # a full disk is reported by the code that needs it
            self._refused += 1
        finally:
            self._lock.release()

    def _append(self, line: bytes) -> None:
        if self._file is None:
            self._open()
        elif self._size > LARGEST:
            self.path.replace(_older(self.path))
            self._close()
            self._open()
        assert self._file is not None
        written = os.write(self._file, line)
        if written < len(line):  # the disk is full in the middle of it
            os.ftruncate(self._file, self._size)
            raise OSError("short write")
        self._size += written

    def _open(self) -> None:
        """Open the file to append to it, without the line in which an earlier writer was killed."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        self._size = os.fstat(self._file).st_size
        tail = os.pread(self._file, 2**16, max(0, self._size - 2**16))
        torn = len(tail) - 1 - tail.rfind(b"\n")
        if torn:
            self._size -= torn
            os.ftruncate(self._file, self._size)

    def _close(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                os.close(self._file)
            self._file = None

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._close()


def _older(path: Path) -> Path:
    return path.with_name(f"{path.stem}.1{path.suffix}")


def read_events(
    path: Path, damaged: Callable[[Path, str], object] = lambda path, why: None, last: int | None = None
) -> list[dict[str, Any]]:
    """Return the events of a log, the oldest first; none where there is no log.

    The line in which its writer was killed is left out in silence. damaged: called with the file and a sentence for
    any other line that is not what was written, which is left out too. last: read no more than so many bytes of the
    newest file.
    """
    events = []
    for file in (path,) if last is not None else (_older(path), path):
        try:
            with open(file, "rb") as stream:
                cut = last is not None and os.fstat(stream.fileno()).st_size > last
                if last is not None and cut:
                    stream.seek(-last, os.SEEK_END)
                lines = stream.read().split(b"\n")
        except FileNotFoundError:
            continue
        except OSError as error:
            damaged(file, f"it cannot be read ({error.strerror})")
            continue
        first = 1 if cut else 0  # the line that the cut goes through
        for number, line in enumerate(lines[first:-1], first + 1):  # what follows the last newline was never finished
            try:
                events.append(verified(line))
            except ValueError as error:
                place = f"line {number}" if not cut else "a line near its end"
                damaged(file, f"{place}: {error}")
    return events
