"""Wheels from PyPI that are compared with ours: unpacked into a cache, never installed, never kept here."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path


def fetch(name: str, version: str, package: str) -> Path:
    """Return the directory of an unpacked wheel that holds ``package``. Raises OSError where it cannot be had."""
    cache = Path(os.environ.get("ALIGN_CACHE") or Path.home() / ".cache" / "align") / f"{name}-{version}"
    if not (cache / package).is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache)]
        try:
            done = subprocess.run(
                [*pip, f"{name}=={version}"], capture_output=True, text=True, timeout=180, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise OSError(f"{name} {version} cannot be fetched: PyPI does not answer") from error
        wheels = list(cache.glob("*.whl"))
        if done.returncode or not wheels:
            raise OSError(f"{name} {version} cannot be fetched: {done.stderr.strip()[-300:]}")
        unpack(wheels[0], cache, package)
    return cache


def unpack(wheel: Path, place: Path, package: str) -> None:
    """Unpack a wheel; its package appears under its name when it is whole."""
    partial = place / f"partial-{os.getpid()}"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(partial)
    with contextlib.suppress(OSError):  # another process was first
        (partial / package).rename(place / package)
    shutil.rmtree(partial)
