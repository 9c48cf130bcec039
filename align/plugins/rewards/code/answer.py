"""The code in an answer."""

from __future__ import annotations

PYTHON = ("python", "python3", "py")


def last_block(text: str) -> str | None:
    """The last complete fenced block marked as Python, or the last unmarked one where none is; else None.

    An answer whose last fence is left open (it was cut off) has no code.
    """
    marked: str | None = None
    unmarked: str | None = None
    language = ""
    block: list[str] | None = None
    for line in text.splitlines(keepends=True):
        bare = line.strip()
        if block is None and bare.startswith("```"):
            language, block = bare.strip("`").strip().lower(), []
        elif block is not None and bare == "```":
            if language in PYTHON:
                marked = "".join(block)
            elif not language:
                unmarked = "".join(block)
            block = None
        elif block is not None:
            block.append(line)
    if block is not None:
        return None
    return unmarked if marked is None else marked
