"""An exception in one line, for messages about code that is not align's: a plugin's, a reward function's."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

import align

HOME = Path(align.__file__).resolve().parents[1]
"""The directory that the package ``align`` is imported from."""

_NOT_THE_USERS = tuple(
    {str(HOME / "align"), "<", *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))}
)
"""Beginnings of the file names of code that is not the user's: align's, Python's and what is installed."""


def error_line(error: BaseException, file: str | None = None, longest: int = 500) -> str:
    """Return an exception in one line: ``ZeroDivisionError: division by zero (rewards.py, line 2)``.

    file: the source file in which the line is looked for; None: any that is neither align's, Python's nor installed.
    Without such a line no place is given. longest: characters of the exception's message that are quoted.

    ``str(error)`` is the user's code too: it may fail, or never return, which a worker's deadline ends.
    """
    try:
        words = " ".join(str(error)[:longest].split())
    except Exception as worse:
        words = f"its message cannot be read, which raises {type(worse).__name__}"
    line = f"{type(error).__name__}: {words}".removesuffix(": ")
    frames = traceback.extract_tb(error.__traceback__)
    # The last frame is often a library's; what helps the user is the last line of their own that led there.
    if file is None:
        own = [frame for frame in frames if not frame.filename.startswith(_NOT_THE_USERS)]
    else:
        own = [frame for frame in frames if frame.filename == file]
    return f"{line} ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else line


def first_line(error: Exception) -> str:
    """The first line that an error's message has, or its type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
