"""Messages for errors of the operating system: where, what, and the fix. No torch.

One table for every command: a full disk, a path that cannot be written, memory or file descriptors that ran out are
limits of the machine and not bugs of align, wherever in the code they occur.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from align.core.util.atomic_files import cache_directory
from align.schemas.errors import AlignError, Problem

_ROOM = "free some room, or write to another place"
_ELSEWHERE = "choose another place, or make this one writable"
_MEMORY = (
    "close what else uses memory, or make the work smaller: train.micro_batch_tokens, data.dataset_num_proc, "
    "data.stream"
)

MEMORY_RAN_OUT = "memory ran out"

_TABLE: dict[int, tuple[str, str]] = {
    errno.ENOSPC: ("no room is left on the disk", _ROOM),
    errno.EDQUOT: ("the disk quota is used up", _ROOM),
    errno.EFBIG: ("would be larger than files may be here", "raise the limit (ulimit -f), or write to another place"),
    errno.EROFS: ("lies on a read-only file system", _ELSEWHERE),
    errno.EACCES: ("permission denied", _ELSEWHERE),
    errno.EPERM: ("the operation is not permitted", _ELSEWHERE),
    errno.ENAMETOOLONG: ("its name is too long", "choose a shorter one"),
    errno.ENOTDIR: ("a part of this path is a file, where a directory is needed", "choose another path"),
    errno.EISDIR: ("is a directory, where a file is needed", "choose another path"),
    errno.EEXIST: ("is there already, and is not a directory", "choose another path, or remove it"),
    errno.ENOENT: ("does not exist", "give a path that does"),
    errno.ELOOP: ("is a link that leads back to itself", "choose another path, or remove the link"),
    errno.EIO: ("the disk reports an input/output error", "check the disk; the system log (dmesg) tells more"),
    errno.ESTALE: ("its network file system has lost it", "mount it again"),
    errno.EMFILE: ("too many files are open", "raise the limit: ulimit -n 65536; or lower data.dataset_num_proc"),
    errno.ENFILE: ("too many files are open on this machine", "close other programs"),
    errno.ENOMEM: ("memory ran out", _MEMORY),
    errno.EAGAIN: (
        "no more processes or threads can be started",
        "raise the limit: ulimit -u; or lower data.dataset_num_proc",
    ),
}
_OURS = {errno.EBADF, errno.EINVAL, errno.EFAULT, errno.ECHILD, errno.ESRCH, errno.ENOTTY, errno.EPIPE}
"""Errors that point to a bug in the program, not to the machine: a traceback helps more."""

_RUST = re.compile(r"\(os error (\d+)\)")  # how safetensors and tokenizers, which are written in Rust, print an errno
_IN_WORDS = {
    os.strerror(number): number
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.EIO)
}
"""Limits that C++ libraries and the dynamic linker report only as the text of ``strerror``."""
_NO_MEMORY = re.compile(
    r"can't allocate memory|out of memory|CUBLAS_STATUS_ALLOC_FAILED|Cannot allocate memory|failed to map segment", re.I
)
_NO_THREAD = "can't start new thread"


def explain(error: BaseException) -> AlignError | None:
    """Return an AlignError for an error of the machine, or None if ``error`` is something else.

    Looks through what an error was raised from or during: torch's zip writer hides a full disk behind its own.
    """
    seen: set[int] = set()  # a chain of causes may be a ring
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(current, AlignError):
            return None  # already explained where it happened; what followed has another cause
        if problem := _problem(current):
            return AlignError("", problems=[problem])
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return None


@contextmanager
def explaining() -> Iterator[None]:
    """Raise an AlignError in place of an error of the machine, as ``explain`` words it; let any other error through.

    Serves as a decorator too, for functions that promise their callers AlignErrors only.
    """
    try:
        yield
    except Exception as error:
        explained = explain(error)
        if explained is None:
            raise
        raise explained from error


def memory_asked_for(error: BaseException) -> tuple[str, str]:
    """Return what torch says of an allocation that failed: what was asked for, and what was free; empty if unknown."""
    text = str(error)
    size = re.search(r"tried to allocate ([\d.]+ ?\w*)", text, re.I)
    free = re.search(r"total capacity of ([\d.]+ \w+) of which ([\d.]+ \w+) is free", text)
    asked = size.group(1) if size else ""
    if asked.endswith("bytes"):
        asked = f"{int(float(asked.split()[0])) / 1e9:,.2f} GB"
    if free:
        return asked, f"{free.group(2)} of {free.group(1)}"
    return asked, ""


def out_of_memory(error: BaseException) -> bool:
    """Return True if memory ran out, on the machine or on a GPU."""
    # torch.OutOfMemoryError by its name, as commands without torch import this module too.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError | ImportError) and bool(_NO_MEMORY.search(str(error)))


def _problem(error: BaseException) -> Problem | None:
    if out_of_memory(error):
        asked, free = memory_asked_for(error)
        requested = f": {asked} more were asked for" if asked else ""
        left = f", and {free} are free" if free else ""
        return Problem("", f"{MEMORY_RAN_OUT}{requested}{left}", _MEMORY)
    if isinstance(error, RuntimeError) and _NO_THREAD in str(error):
        return Problem("", *_TABLE[errno.EAGAIN])
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (found := _RUST.search(str(error))):
        number = int(found.group(1))
    if number is None:
        number = next((known for words, known in _IN_WORDS.items() if words in str(error)), None)
    if number is None or number in _OURS:
        return None
    name = getattr(error, "filename", None)
    path = os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else ""
    if number == errno.ENOENT and "temporary directory" in str(error):
        return Problem("TMPDIR", "there is no directory for temporary files that can be written", "set TMPDIR to one")
    what, fix = _TABLE.get(number, (os.strerror(number), ""))
    # The kernel reports a dangling link as "does not exist" or "exists", which is true of neither path.
    if number in (errno.EEXIST, errno.ENOENT) and os.path.islink(path) and not os.path.exists(path):
        if os.path.realpath(path) == os.path.abspath(path):
            return Problem(path, *_TABLE[errno.ELOOP])
        what, fix = f"is a link to {os.readlink(path)}, which does not exist", "choose another path, or remove the link"
    if number == errno.EEXIST and path and os.path.isfile(path):
        what = "is a file, where a directory is needed"
    return Problem(path, what, _setting(path) or fix)


def _setting(path: str) -> str:
    """Return a fix that names the environment variable behind a path that align chose itself; empty for other paths."""
    if not path:
        return ""
    place = Path(path).absolute()
    if place.is_relative_to(cache_directory().absolute()):
        return "free some room or make it writable, or set ALIGN_CACHE to another directory"
    if tempfile.tempdir is not None and place.parent == Path(tempfile.tempdir).absolute():
        return "free some room there, or set TMPDIR to another directory"
    return ""
