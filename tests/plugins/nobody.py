"""The attempts of ``escapes`` by an unprivileged user: ``python -m tests.plugins.nobody`` gives up root first."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from align.core.sandbox import sandbox as sandboxes
from align.core.sandbox.sandbox import Layers, Sandbox
from align.core.sandbox.sandbox_runtime import namespaces, system
from tests.plugins.escapes import attempt, works


def become_nobody() -> None:
    """Give up root; first, where Python lies in a closed directory, in a mount namespace in which that is open."""
    stdlib = Path(sandboxes.python()).resolve()
    closed = [path for path in reversed(stdlib.parents) if not os.stat(path).st_mode & 0o001]
    if closed:
        system.libc("unshare", namespaces.NEWNS)
        namespaces.mount(None, "/", None, namespaces.REC | namespaces.PRIVATE)
        inner = next(p for p in reversed(stdlib.parents) if p.is_relative_to(closed[-1]) and p != closed[-1])
        opened = os.open(inner, os.O_PATH)
        namespaces.mount("none", str(closed[0]), "tmpfs", 0, "mode=755")
        inner.mkdir(parents=True)
        namespaces.mount(f"/proc/self/fd/{opened}", str(inner), None, namespaces.BIND | namespaces.REC)
        os.close(opened)
    namespaces.drop()
    system.prctl(system.PR_SET_DUMPABLE, 1)


def main() -> None:
    """As nobody: what got out, with all layers and with Landlock alone; null where this machine has them not."""
    if os.geteuid() == 0:
        become_nobody()
    said: dict[str, Any] = {"uid": os.geteuid()}
    for layers in (Layers(True, True), Layers(False, True)):
        sandbox = Sandbox(layers)
        said[repr(layers)] = attempt(sandbox) if works(sandbox) else None
    json.dump(said, sys.stdout)


if __name__ == "__main__":
    main()
