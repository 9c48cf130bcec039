"""Several processes on this node: a small supervisor that leaves no orphan and no half-dead group.

Workers get the same environment torchrun gives, so ``torchrun -m align train RUN`` and ``devices.count: 2`` take one
path from there. Signals are passed on; when one worker ends badly the others have a grace time, then are killed;
when the supervisor dies, the kernel kills the workers (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Sequence

from align.core import interpreter

GRACE_SECONDS = 30.0
_PR_SET_PDEATHSIG = 1


def under_launcher() -> bool:
    """Whether this process is one of a group already (torchrun's, or ours)."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def rank() -> int:
    """Number of this process in its group, 0 alone."""
    return int(os.environ.get("RANK", "0"))


def run_workers(arguments: Sequence[str], count: int) -> int:
    """Run ``python -m align ARGUMENTS`` ``count`` times as one group; returns the first bad exit status, else 0.

    A negative status is the number of the signal that killed the worker.
    """
    environment = interpreter.environment() | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "align",
    }
    if "OMP_NUM_THREADS" not in environment:
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // count))
    workers = [
        subprocess.Popen(
            interpreter.command("-m", "align", *arguments),
            env=environment | {"RANK": str(number), "LOCAL_RANK": str(number)},
            preexec_fn=die_with_parent,
        )
        for number in range(count)
    ]
    with _passing_on(workers):
        return _wait(workers)


def _wait(workers: Sequence[subprocess.Popen[bytes]]) -> int:
    first_bad, deadline = 0, float("inf")
    while any(worker.poll() is None for worker in workers):
        bad = [worker.returncode for worker in workers if worker.returncode]
        if bad and not first_bad:
            first_bad, deadline = bad[0], time.monotonic() + GRACE_SECONDS
        if time.monotonic() > deadline:
            for worker in workers:
                worker.kill()
        time.sleep(0.02)
    return first_bad or next((worker.returncode for worker in workers if worker.returncode), 0)


class _passing_on:
    """While entered, SIGTERM, SIGINT and SIGUSR1 to this process go to the workers."""

    def __init__(self, workers: Sequence[subprocess.Popen[bytes]]) -> None:
        self.workers = workers
        self.before: dict[int, object] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                self.before[number] = signal.signal(number, self._pass_on)

    def _pass_on(self, number: int, frame: object) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.send_signal(number)

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal returned


def die_with_parent() -> None:
    """To be run in a child before its program: the kernel kills it when the thread that started it ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def free_port() -> int:
    """A port of this machine that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
