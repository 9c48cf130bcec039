"""Files that are whole or absent, on the disk when they are said to be."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

PARTIAL = ".tmp-"
"""What the names of half-written files and directories begin with."""


def cache_directory() -> Path:
    """Where what can be made again is kept (tokens, log-probabilities, verdicts): ``ALIGN_CACHE``, else the user's."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "align"
    return Path(os.environ.get("ALIGN_CACHE", default))


def partial(path: Path) -> Path:
    """Where this process writes what will become ``path``: beside it, as a rename is atomic within one filesystem."""
    return path.with_name(f"{PARTIAL}{os.getpid()}-{path.name}")


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that appears at ``path`` when all is written and flushed, or never."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = partial(path)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
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
