"""Small and read-only disks for tests: real ones, mounted, where the tests run as root; elsewhere they are skipped."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")


@contextmanager
def small_disk(place: Path, kibibytes: int) -> Iterator[Path]:
    """A file system of its own at ``place``, with room for that much."""
    place.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(place))
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def resize(place: Path, kibibytes: int) -> None:
    """Give a small disk another size."""
    _mount("-o", f"remount,size={kibibytes}k", str(place))


@contextmanager
def read_only(place: Path) -> Iterator[Path]:
    """A directory that nobody can write to, root neither."""
    place.mkdir(parents=True, exist_ok=True)
    _mount("--bind", str(place), str(place))
    try:
        _mount("-o", "remount,bind,ro", str(place))
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
