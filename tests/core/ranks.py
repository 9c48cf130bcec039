"""Real ranks on this machine: runs over several processes, started, waited for and looked at from outside."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align.core.engine import checkpoint

ROOT = Path(__file__).parents[2]

ONE_STEP: dict[str, dict[str, Any]] = {
    "train": {"max_steps": 1, "max_grad_norm": None},
    "checkpoint": {"save_steps": 1},
    "data": {"validation_fraction": 0.0},
    "schedule": {"type": "constant", "warmup_steps": 0.0},
    # What the law says is exact, so it is shown where rounding hides nothing.
    "model": {"dtype": "float64"},
}
LAW = 1e-10
"""Most that two gradients may differ, over the norm of one: float64's rounding is 1e-16, a wrong average 1e-3."""


def environment(tmp: Path) -> Mapping[str, str]:
    """Return the environment of a run whose cache lies in a directory of the test."""
    return os.environ | {"ALIGN_CACHE": str(tmp / "cache"), "OMP_NUM_THREADS": "1"}


def finish(arguments: list[str], tmp: Path) -> None:
    """Run a command, which must succeed."""
    done = subprocess.run(arguments, env=environment(tmp), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr


def torchrun(*program: str, tmp: Path, ranks: int = 2, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run a script, or ``-m`` and a module, with its arguments on several ranks of this machine; return how it ended.

    tmp: a directory of the test, for the cache. timeout: seconds.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *program]
    settings = {**environment(tmp), "PYTHONPATH": str(ROOT)}  # scripts import from ``tests``
    return subprocess.run(command, env=settings, cwd=ROOT, capture_output=True, text=True, timeout=timeout)


def wait_for_step(started: subprocess.Popen[bytes], output: Path, step: int) -> None:
    """Wait until a run of one stage has a checkpoint of this step. Raises AssertionError where it ends before."""
    deadline = time.monotonic() + 240  # a start takes seconds, and a minute where many run at once
    while not checkpoint.steps(output / "only" / "checkpoints")[:1] >= [step]:
        assert started.poll() is None, "it ended before it could be disturbed"
        assert time.monotonic() < deadline, "it never got there"
        time.sleep(0.005)


def workers_of(supervisor: int) -> list[int]:
    """The ranks' process ids, rank 0 first."""
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    ranks = {}
    for pid in children:
        settings = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        ranks.update({int(s[5:]): int(pid) for s in settings if s.startswith(b"RANK=")})
    return [ranks[rank] for rank in sorted(ranks)]


def alive(pid: int) -> bool:
    """Return True for a process that runs, False for one that has ended, collected or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
