"""JSON files that carry the sha256 of their own content, so that a reader can verify them.

    {"metrics": {"loss": 1.5}, "sha256": "8c1b..."}

The sum is over the content as sorted JSON, not over the file's bytes: indentation may change, a value may not. Neither
JSON nor SQLite nor a disk notices a flipped bit, so everything that align writes and later relies on has such a sum.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align.core.util.atomic_files import sha256, write_whole
from align.schemas.errors import AlignError

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
    write_whole(path, sealed(content, indent=1))


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
