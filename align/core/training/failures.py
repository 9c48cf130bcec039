"""Messages for a stage that failed: which process, on which machine, at which step, and what is saved."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch.distributed as dist

from align.core.engine import checkpoint, processes
from align.core.training.run_directory import StageDirectory
from align.core.util import liveness, signs_of_life, stopping
from align.core.util.detect_hardware import free_main_memory
from align.core.util.stopping import Interrupted, ProcessLost
from align.core.util.system_errors import MEMORY_RAN_OUT, explain
from align.schemas.errors import AlignError, Problem

_GLOO = ("gloo/transport", "Connection closed by peer", "Connection reset by peer")
"""Text in gloo's RuntimeErrors about a broken connection; torch has no class for them."""


NAMED = 4
"""Most processes that a message about a lost connection lists."""
REPORT_SECONDS = 1.0
"""Seconds that a process which lost its peers waits for one of them to report why it ended."""


class OutOfMemory(AlignError):
    """Raised for a stage whose memory ran out, in this process or in a worker. stage: its name."""

    stage = ""


def _raised(problems: Sequence[Problem], directory: StageDirectory) -> AlignError:
    """Return the error of some problems: OutOfMemory where one of them is that memory ran out."""
    if any(MEMORY_RAN_OUT in problem.what for problem in problems):
        error = OutOfMemory("", problems=problems)
        error.stage = directory.path.name
        return error
    return AlignError("", problems=problems)


@contextmanager
def explained_failures(directory: StageDirectory) -> Iterator[None]:
    """Raise errors of the machine and lost connections to other processes as AlignError, with the saved step."""
    try:
        yield
    except AlignError:
        raise
    except Exception as error:
        found = explain(error)
        if found is None and not _is_lost(error):
            raise
        if found is None:
            raise ProcessLost("", problems=[*_peers(directory), *_saved(directory)]) from error
        problems = [_here(problem) for problem in found.problems]
        raise _raised([*problems, *_saved(directory)], directory) from error


def _here(problem: Problem) -> Problem:
    """Return a problem with its process, where memory ran out: on several hosts one of many has it."""
    where = problem.where or liveness.this_process()
    if not problem.what.startswith(MEMORY_RAN_OUT):
        return problem
    free = "" if "free" in problem.what else f"; {free_main_memory() / 1e9:,.1f} GB of main memory are free"
    return replace(problem, where=where, what=problem.what + free)


def worker_failed(ended: processes.Ended, directory: StageDirectory) -> BaseException:
    """Return the exception to raise for the worker that ended first."""
    status = ended.status
    number = -status if status < 0 else status - 128
    if number in stopping.SIGNALS:
        return Interrupted(number, checkpoint.last_step(directory.checkpoints))
    sign = signs_of_life.read_signs(directory.path).get(ended.rank)
    reported = sign.error if sign is not None else ""
    # Rank 0 has printed its error on this terminal; another rank's is repeated only where it is not above already.
    if status == stopping.FAILED and not (ended.rank and reported and reported not in ended.stderr):
        above = Problem(str(directory.path), "a worker stopped for the reason above")
        if MEMORY_RAN_OUT in reported:
            above = replace(above, what=f"{above.what}: {MEMORY_RAN_OUT}")
        return _raised([above, *_saved(directory)], directory)
    who = signs_of_life.named(ended.rank, sign) if sign else f"rank {ended.rank} on {socket.gethostname()}"
    if reported:
        what, fix = f"stopped:\n{reported}", ""
    elif number == signal.SIGKILL:
        what = "was killed by SIGKILL: memory may have run out"
        fix = "dmesg shows whether it did, and which process used it"
    elif 0 < number < signal.NSIG:
        what, fix = f"was killed by {signal.Signals(number).name}", ""
    else:
        what, fix = f"ended with status {status}", ""
    problems = [Problem(who, what, fix)]
    if ended.stderr and not reported:
        problems.append(Problem("its last lines", ended.stderr.replace("\n", "\n    ")))
    return _raised([*problems, *_saved(directory)], directory)


def _saved(directory: StageDirectory) -> list[Problem]:
    step = checkpoint.last_step(directory.checkpoints)
    return [Problem(str(directory.path), f"step {step} is saved", "--resume goes on from there")] if step else []


def _is_lost(error: Exception) -> bool:
    if processes.world_size() == 1:
        return False
    broken = isinstance(error, RuntimeError) and any(text in str(error) for text in _GLOO)
    return broken or isinstance(error, dist.DistError)


def _peers(directory: StageDirectory) -> list[Problem]:
    """Return the errors that other processes of the group reported; without any, that the connection was lost."""
    mine, world = processes.rank(), processes.world_size()
    until = time.monotonic() + REPORT_SECONDS  # a peer may be about to write its error
    while True:
        signs = signs_of_life.read_signs(directory.path, signs_of_life.group())
        reported = [
            Problem(signs_of_life.named(rank, sign), f"stopped:\n{sign.error}")
            for rank, sign in signs.items()
            if rank != mine and sign.error
        ]
        if reported or time.monotonic() > until:
            break
        time.sleep(0.05)
    if reported:
        return reported
    absent = [f"rank {rank}" for rank in range(world) if rank not in signs]
    what = f"{', '.join(absent)} never started" if absent else "lost its connection to another process of the group"
    fix = "what started the processes names the one that ended first (torchrun: root cause)"
    here = socket.gethostname()
    elsewhere = [signs_of_life.named(rank, sign) for rank, sign in sorted(signs.items()) if sign.host != here]
    if elsewhere and not absent:
        more = f" and {len(elsewhere) - NAMED} more" if len(elsewhere) > NAMED else ""
        what += f"; on other machines: {', '.join(elsewhere[:NAMED])}{more}"
        fix += "; if none did, the network between the machines failed"
    return [Problem(signs_of_life.named(mine, signs.get(mine)), what, fix)]
