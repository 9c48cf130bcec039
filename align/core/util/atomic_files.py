"""Files that are whole or absent, on the disk when they are said to be."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TextIO

PARTIAL = ".tmp-"
"""What the names of half-written files and directories begin with."""
_PARTIAL = re.compile(re.escape(PARTIAL) + r"(\d+)-")


def cache_directory() -> Path:
    """Where what can be made again is kept (tokens, log-probabilities, verdicts): ``ALIGN_CACHE``, else the user's."""
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
        if _started(int(named.group(1))) <= stray.stat().st_mtime + _CLOCK:
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


def _started(pid: int) -> float:
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
def naming(path: Path) -> Iterator[None]:
    """Have an OSError from inside name ``path`` where the system names no file (a full disk) or the temporary one."""
    try:
        yield
    except OSError as error:
        if error.filename == str(partial(path)) or (error.filename is None and error.errno in _OF_THE_DISK):
            error.filename, error.filename2 = str(path), None
        raise


@contextmanager
def growing_file(path: Path) -> Iterator[TextIO]:
    """Open a text file that may be read while it grows; after a failed write it ends with the last whole line."""
    with naming(path), open(path, "w", encoding="utf-8", newline="") as file:
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
    with naming(path):
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


def write_whole(path: Path, content: bytes) -> None:
    """``whole_file`` for content that is at hand."""
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
    """Of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
