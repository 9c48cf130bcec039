"""Run a command, and end all that it started: ``python supervisor.py COMMAND...``.

vLLM's engine and workers outlive a server that is killed. So the server gets a session of its own, which is killed when
the server ends, on SIGTERM, and when the process that started the supervisor dies. The supervisor ends as the
server did. Nothing but the standard library: it starts at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys

GRACE = 10.0
"""Seconds for a server to end by itself after SIGTERM."""
PR_SET_PDEATHSIG = 1


def supervise(command: list[str]) -> int:
    """Run the command and return its exit status, negative for a signal (as subprocess has it)."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt  # after a handler that returns, ``wait`` would go on (PEP 475)

    parent = os.getppid()
    signal.signal(signal.SIGTERM, interrupt)
    _when_parent_dies(signal.SIGTERM)
    if os.getppid() != parent:  # it died before the signal was set up
        return 1
    child = subprocess.Popen(command, start_new_session=True, preexec_fn=lambda: _when_parent_dies(signal.SIGKILL))
    try:
        return child.wait()
    except KeyboardInterrupt:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.wait(timeout=GRACE)
        return -signal.SIGTERM
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


def _when_parent_dies(number: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(number))


if __name__ == "__main__":
    status = supervise(sys.argv[1:])
    if status < 0:
        signal.signal(-status, signal.SIG_DFL) if -status not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -status)
    sys.exit(status)
