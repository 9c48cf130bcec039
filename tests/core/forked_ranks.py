"""Whole runs over several ranks whose processes are forked, not started: imports are paid for once.

A group is as ``align train`` makes it: a supervisor (``processes.run_workers``) and its ranks, joined by gloo. Only the
start differs. Each rank is a fork of this process, in place of a new interpreter that imports PyTorch for four seconds.
The process that forks must have one thread, as pytest's has not: use a process of its own, such as

    python -m tests.core.forked_ranks run.yaml
"""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from align.schemas.run import Run

MODULES = (
    "align.core.training.fit",
    "align.core.training.launch",
    "align.plugins.generators.local",
    "align.plugins.strategies.single_ddp_fsdp.sharding",
    "torch.distributed.checkpoint.state_dict",
)
"""Modules that training imports."""
REFUSED = 2
"""Exit status of a process that ended with an AlignError."""


def import_everything() -> None:
    """Import what training needs, so that forked processes do not."""
    import torch

    for name in MODULES:
        importlib.import_module(name)
    torch.set_num_threads(1)


def start_run(run: Run, log: Path, resume: bool = True) -> int:
    """Fork ``align train``, which forks its ranks; returns the supervisor's pid. log: takes all that they print."""

    def supervise() -> None:
        from align.core.engine import processes
        from align.core.training.launch import train
        from align.core.util import stopping

        stopping.die_with_parent()
        processes.subprocess = _ForkingSubprocess  # type: ignore[attr-defined]
        train(run, resume=resume, progress=False)

    return fork(supervise, log, {"ALIGN_CACHE": str(log.parent / "cache"), "OMP_NUM_THREADS": "1"})


def ended(pid: int) -> int:
    """Wait for a process; its exit status, the negative number of the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def ranks_of(supervisor: int) -> list[int]:
    """The pids of a supervisor's ranks that are there now, rank 0 first."""
    try:
        children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    except FileNotFoundError:
        return []
    return sorted(map(int, children))  # forked in this order


def fork(work: Callable[[], None], log: Path | None, environment: Mapping[str, str]) -> int:
    """Fork a process that does the work, and ends with the status of ``align train``; returns its pid.

    log: takes all that it prints; None: that goes where this process's goes. environment: laid over this process's.
    """
    pid = os.fork()
    if pid == 0:
        _run_child(work, log, environment)
    return pid


def _run_child(work: Callable[[], None], log: Path | None, environment: Mapping[str, str]) -> NoReturn:
    """Do the work in a process just forked, and end it with the status of ``align train``."""
    from align.core.training.failures import ProcessLost
    from align.core.util.stopping import Interrupted
    from align.schemas.errors import AlignError

    status = 1
    try:
        os.environ.update(environment)
        if log is not None:
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        work()
        status = 0
    except Interrupted as stop:
        status = 128 + stop.signal_number
    except ProcessLost:
        status = 3
    except AlignError as error:
        print(error, file=sys.stderr)
        status = REFUSED
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)


class ForkedRank:
    """A rank as ``run_workers`` sees it: what it uses of ``subprocess.Popen``, for a forked process."""

    def __init__(
        self,
        arguments: Sequence[str],
        env: Mapping[str, str],
        stderr: int | None,
        preexec_fn: Callable[[], None],
        process_group: int,
        **_: Any,
    ) -> None:
        """arguments: ``... worker DIRECTORY STAGE``."""
        from align.core.training.launch import run_worker

        place = arguments.index("worker")
        directory, stage = Path(arguments[place + 1]), arguments[place + 2]
        reading, writing = os.pipe()
        self.stderr: IO[bytes] = os.fdopen(reading, "rb")
        self.returncode: int | None = None

        def work() -> None:
            preexec_fn()
            os.setpgid(0, process_group)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                signal.signal(number, lambda received, frame: os._exit(128 + received))
            os.dup2(writing, 2)
            os.closerange(3, 1024)  # as in a process that was started: else it would hold the run's lock too
            sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
            run_worker(directory, stage, progress=False)

        self.pid = fork(work, None, env)
        os.close(writing)

    def poll(self) -> int | None:
        """Return the exit status, None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self) -> int:
        """Wait for its end, and return its exit status."""
        if self.returncode is None:
            self.returncode = ended(self.pid)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)


class _ForkingSubprocess:
    """``subprocess``, as far as ``processes`` uses it."""

    Popen: Any = ForkedRank
    PIPE = subprocess.PIPE


if __name__ == "__main__":
    from align.core.config import run_file

    import_everything()
    file = Path(sys.argv[1])
    sys.exit(ended(start_run(run_file.load(file), file.with_suffix(".log"))) != 0)
