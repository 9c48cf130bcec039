"""JSON that carries the sha256 of its own content, so that whoever reads it back knows it is what was written.

    {"metrics": {"loss": 1.5}, "sha256": "8c1b..."}

The sum is over the content as sorted JSON, not over the file's bytes: indentation may change, a value may not. Neither
JSON nor SQLite nor a disk notices a flipped bit; everything that align writes and later believes is kept this way.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align.core.disk import sha256, write_whole
from align.schemas.errors import AlignError

SUM = "sha256"
"""The key of the sum, the last one of the object."""


class Damaged(AlignError):
    """A file that is not what was written."""

    def __init__(self, path: Path, why: str, mend: str = "") -> None:
        self.why = why
        super().__init__(f"is damaged: {why}", mend, where=str(path))


def digest(value: Any) -> str:
    """sha256 of a plain value, or of one that holds dates and the like, by what they print."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def sealed(content: Mapping[str, Any], indent: int | None = None) -> bytes:
    """The content and its sum as JSON; on one line unless indented."""
    plain = json.loads(json.dumps(content, default=str))  # as it will be read: keys are strings, tuples are lists
    return json.dumps({**plain, SUM: digest(plain)}, indent=indent).encode()


def opened(raw: bytes, must: bool = True) -> dict[str, Any]:
    """The content of ``sealed``. Raises ValueError, which says why, where it is not what was written.

    must: whether an object without a sum is refused; a file that is only shown may be older, or made by hand.
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
    """Write a file that ``read_json`` can verify, whole or not at all."""
    write_whole(path, sealed(content, indent=1))


def read_json(path: Path, mend: str = "", must: bool = True) -> dict[str, Any]:
    """The content of a file that ``write_json`` wrote.

    mend: what to do about a damaged one. must: as for ``opened``. Raises Damaged, and FileNotFoundError where there is
    none.
    """
    try:
        return opened(path.read_bytes(), must)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Damaged(path, f"it cannot be read ({error.strerror})", mend) from error
    except ValueError as error:
        raise Damaged(path, str(error), mend) from error


def set_aside(path: Path) -> Path:
    """Rename a damaged file, so that nobody reads it and nothing is lost; return its new path."""
    taken = (path.with_name(f"{path.name}.damaged{number or ''}") for number in itertools.count())
    aside = next(name for name in taken if not name.exists())
    return path.replace(aside)


def file_sums(root: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file under ``root``, by its path from there."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): {"size": path.stat().st_size, "sha256": sha256(path)} for path in files}


def difference(root: Path, sums: Mapping[str, Mapping[str, Any]]) -> str | None:
    """What differs from ``file_sums``, or None where every byte of those files is as it was; others may be added."""
    for name, expected in sums.items():
        path = root / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["size"]:
            return f"{name} has {path.stat().st_size} bytes, not {expected['size']}"
        if sha256(path) != expected["sha256"]:
            return f"{name} differs from its sha256"
    return None
