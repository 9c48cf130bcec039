"""Files that are whole or absent, and flushed to the disk before their writer returns."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import json
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TextIO

from align.schemas.errors import AlignError
from align.schemas.text import stripped

PARTIAL = ".tmp-"
"""The prefix of the names of half-written files and directories."""
_PARTIAL = re.compile(re.escape(PARTIAL) + r"(\d+)-")


def cache_directory() -> Path:
    """Return the directory for what can be made again (tokens, log-probabilities, verdicts).

    It is ``ALIGN_CACHE``, else ``align`` in the user's cache directory.
    """
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "align"
    return Path(os.environ.get("ALIGN_CACHE", default))


def partial(path: Path) -> Path:
    """Return where this process writes what will become ``path``: in the same directory, as a rename is atomic there.

    The first use of a directory removes half-written files of processes that are gone.
    """
    if path.parent not in _swept:
        _swept.add(path.parent)
        remove_partial(path.parent)
    return path.with_name(f"{PARTIAL}{os.getpid()}-{path.name}")


_swept: set[Path] = set()


def remove_partial(directory: Path, recursive: bool = False) -> None:
    """Remove half-written files of processes that are gone; those of living processes stay."""
    walk = os.walk(directory) if recursive else [(str(directory), *_listing(directory))]
    for place, directories, files in walk:
        for name in [*directories, *files]:
            stray = Path(place) / name
            if _PARTIAL.match(name) and not _being_written(stray):
                # Of two processes that both find it one is quicker: nothing is wrong then, nor on a read-only disk.
                shutil.rmtree(stray, ignore_errors=True)
                with suppress(OSError):
                    stray.unlink(missing_ok=True)
        directories[:] = [name for name in directories if not _PARTIAL.match(name)]


def _listing(directory: Path) -> tuple[list[str], list[str]]:
    try:
        return [], os.listdir(directory)
    except OSError:  # it is yet to be made, or cannot be read
        return [], []


def _being_written(stray: Path) -> bool:
    """Return True if the process that a partial file is named after may still be writing it.

    On this machine that process must be there, and be older than the file (process ids come again, in containers all
    the time). On a shared disk it may be another machine's: such a writer holds a lock (``whole_file``).
    """
    named = _PARTIAL.match(stray.name)
    assert named is not None
    try:
        if began(int(named.group(1))) <= stray.stat().st_mtime + _CLOCK:
            return True
        descriptor = os.open(stray, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:  # it is gone, or not ours to judge
        return not stray.is_symlink() and stray.exists()
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)
    return False


_CLOCK = 2.0
"""Seconds that a file's time and a process's may disagree."""


def began(pid: int) -> float:
    """Return when a process of this machine began, in seconds since the epoch; infinity if it does not exist."""
    try:
        if not Path(f"/proc/{pid}/cmdline").read_bytes():  # a thread of the kernel's, or a process that has ended
            return float("inf")
        ticks = int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text(encoding="utf-8").split()[0])
    except (OSError, ValueError, IndexError):
        return float("inf")
    return time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")


_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE}
"""Errors of a write that no network connection raises, so they can be attributed to the file."""


@contextmanager
def name_in_errors(path: Path) -> Iterator[None]:
    """Name ``path`` in an OSError from inside, where the system names no file (a full disk) or the temporary one."""
    try:
        yield
    except OSError as error:
        if error.filename == str(partial(path)) or (error.filename is None and error.errno in _OF_THE_DISK):
            error.filename, error.filename2 = str(path), None
        raise


@contextmanager
def growing_file(path: Path) -> Iterator[TextIO]:
    """Open a text file that may be read while it grows; after a failed write it ends with the last whole line."""
    with name_in_errors(path), open(path, "w", encoding="utf-8", newline="") as file:
        try:
            yield file
            file.flush()
        except OSError:
            with open(path, "rb+") as written:
                written.truncate(written.read().rfind(b"\n") + 1)
            with suppress(OSError):  # what could not be written is tried again, and fails again
                file.close()
            raise


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that appears at ``path`` when all is written and flushed, or never.

    An OSError names ``path``, also where the system names no file (a full disk) or the temporary one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = partial(path)
    with name_in_errors(path):
        try:
            with open(temporary, "wb") as file:
                with suppress(OSError):  # tells others, on a shared disk too, that it is being written
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        fsync_directory(path.parent)


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: readers see the old content or the new. Raises OSError naming the file."""
    with whole_file(path) as file:
        file.write(content)


def fsync_directory(path: Path) -> None:
    """Make a rename in ``path`` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(root: Path) -> None:
    """Flush every file and directory under ``root``."""
    for directory, _, files in os.walk(root):
        for name in files:
            with open(Path(directory) / name, "rb") as file:
                os.fsync(file.fileno())
        fsync_directory(Path(directory))


def sha256(path: Path) -> str:
    """Return the sha256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class HashingWriter:
    """A file that is hashed while it is written, so that its writer need not read it again. sums: after the last write.

    For ``torch.save``, which wants ``write`` and ``flush`` only.
    """

    PIECE = 2**18
    """Bytes hashed and written at a time: they stay in the processor's cache in between (a third less time)."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._hash, self._size = file, hashlib.sha256(), 0

    def write(self, content: bytes | memoryview) -> int:
        """Write all of the content; return its size in bytes."""
        whole = memoryview(content).cast("B")
        for start in range(0, len(whole), self.PIECE):
            piece = whole[start : start + self.PIECE]
            self._hash.update(piece)
            self._file.write(piece)
        self._size += len(whole)
        return len(whole)

    def flush(self) -> None:
        """Pass on to the system what was written."""
        self._file.flush()

    def sums(self) -> dict[str, Any]:
        """Return the size in bytes and the sha256, as ``file_sums`` would find them."""
        return {"size": self._size, "sha256": self._hash.hexdigest()}


# JSON files that carry the sha256 of their own content, so that a reader can verify them.
#
#     {"metrics": {"loss": 1.5}, "sha256": "8c1b..."}
#
# The sum is over the content as sorted JSON, not over the file's bytes: indentation may change, a value may not.
# Neither JSON nor SQLite nor a disk notices a flipped bit, so everything that align writes and later relies on has
# such a sum.

SUM = "sha256"
"""Key of the sum, the last one of the object."""


class Damaged(AlignError):
    """Raised for a file whose content is not what was written."""

    def __init__(self, path: Path, why: str, fix: str = "") -> None:
        self.why = why
        super().__init__(f"is damaged: {why}", fix, where=str(path))


def digest(value: Any) -> str:
    """Return the sha256 of a value as sorted JSON; what JSON lacks (dates, paths) counts as its string."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def sealed(content: Mapping[str, Any], indent: int | None = None) -> bytes:
    """Return the content and its sum as JSON; on one line unless indented."""
    plain = json.loads(json.dumps(content, default=str))  # as it will be read: keys are strings, tuples are lists
    return json.dumps({**plain, SUM: digest(plain)}, indent=indent).encode()


def verified(raw: bytes, must: bool = True) -> dict[str, Any]:
    """Return the content of ``sealed``. Raises ValueError with the reason if it is not what was written.

    must: refuse an object without a sum; pass False for a file that is only displayed, which may be older or made by
    hand.
    """
    try:
        content = json.loads(raw)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    if SUM not in content and must:
        raise ValueError("it has no sha256 (an older align wrote none)")
    if SUM in content and content.pop(SUM) != digest(content):
        raise ValueError("its content differs from its sha256")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file that ``read_json`` can verify, atomically."""
    write_atomic(path, sealed(content, indent=1))


def read_json(path: Path, fix: str = "", must: bool = True) -> dict[str, Any]:
    """Return the content of a file that ``write_json`` wrote.

    fix: the advice in the message about a damaged file. must: as for ``verified``. Raises Damaged, or FileNotFoundError
    if there is no file.
    """
    try:
        return verified(path.read_bytes(), must)
    except FileNotFoundError:
        raise  # an absent file is not a damaged one: a new run has none of them
    except OSError as error:
        raise Damaged(path, f"it cannot be read ({error.strerror})", fix) from error
    except ValueError as error:
        raise Damaged(path, str(error), fix) from error


def set_aside(path: Path) -> Path:
    """Rename a damaged file, so that nobody reads it and nothing is lost; return its new path."""
    # A second damaged file of the same name must not replace the first: it may hold what can still be recovered.
    taken = (path.with_name(f"{path.name}.damaged{number or ''}") for number in itertools.count())
    aside = next(name for name in taken if not name.exists())
    return path.replace(aside)


def file_sums(root: Path) -> dict[str, dict[str, Any]]:
    """Return the size in bytes and the sha256 of every file under ``root``, by its path relative to it."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): {"size": path.stat().st_size, "sha256": sha256(path)} for path in files}


def difference(root: Path, sums: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return the first difference from ``file_sums``, or None if those files are unchanged; others may be added."""
    for name, expected in sums.items():
        path = root / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["size"]:
            return f"{name} has {path.stat().st_size} bytes, not {expected['size']}"
        if sha256(path) != expected["sha256"]:
            return f"{name} differs from its sha256"
    return None


# The lock of a cache entry: one process computes it, the others wait, within bounds and with a report. No torch.

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
