"""Work for other processes; imports next to nothing, so that they start quickly."""

from __future__ import annotations

import os


def pid(state: int, item: int) -> int:
    """Which process this is."""
    return os.getpid()


def fall(state: int, item: int) -> int:
    """Die without a word at item 3."""
    if item == 3:
        os._exit(9)
    return item + state


def environment_here() -> dict[str, str]:
    """This process's environment, in which a child started with ``-P`` imports the package that is tested."""
    from align.core.util.child_processes import environment

    return environment()
