"""How a stage ended badly, as its user is told: which process, where, at which step, and what is saved."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from align.core import liveness
from align.core.interrupt import Interrupted
from align.core.system_errors import explain
from align.core.train import checkpoint, spawn
from align.core.train.rundir import StageDirectory
from align.schemas.errors import AlignError, Problem

_GLOO = ("gloo/transport", "Connection closed by peer", "Connection reset by peer")
"""What gloo's RuntimeErrors say of a broken connection; torch has no class for them."""
WORDS_SECONDS = 1.0
"""How long a process that lost its peers waits for a word from them."""


class Lost(AlignError):
    """A collective that broke because another process is gone or silent; that one is to blame."""


@contextmanager
def told(place: StageDirectory) -> Iterator[None]:
    """Raise AlignError, with the step that is saved, for what the machine refuses and for peers that are gone."""
    try:
        yield
    except AlignError:
        raise
    except Exception as error:
        found = explain(error)
        if found is None and not _is_lost(error):
            raise
        problems = _peers(place) if found is None else found.problems
        kind = Lost if found is None else AlignError
        raise kind("", problems=[*problems, *_saved(place)]) from error


def worker_failed(ended: spawn.Ended, place: StageDirectory) -> BaseException:
    """Return what to raise for the worker that ended first."""
    status = ended.status
    number = -status if status < 0 else status - 128
    if number in liveness.SIGNALS:
        return Interrupted(number, checkpoint.last_step(place.checkpoints))
    sign = liveness.signs(place.path).get(ended.rank)
    word = sign.error if sign is not None else ""
    if status == liveness.FAILED and not (ended.rank and word and word not in ended.stderr):
        above = Problem(str(place.path), "a worker stopped for the reason above")
        return AlignError("", problems=[above, *_saved(place)])
    who = liveness.named(ended.rank, sign) if sign else f"rank {ended.rank} on {socket.gethostname()}"
    if word:
        what, fix = f"stopped:\n{word}", ""
    elif number == signal.SIGKILL:
        what, fix = "was killed by SIGKILL: memory may have run out", "dmesg tells whether it did, and who took it"
    elif 0 < number < signal.NSIG:
        what, fix = f"was killed by {signal.Signals(number).name}", ""
    else:
        what, fix = f"ended with status {status}", ""
    problems = [Problem(who, what, fix)]
    if ended.stderr and not word:
        problems.append(Problem("its last lines", ended.stderr.replace("\n", "\n    ")))
    return AlignError("", problems=[*problems, *_saved(place)])


def _saved(place: StageDirectory) -> list[Problem]:
    step = checkpoint.last_step(place.checkpoints)
    return [Problem(str(place.path), f"step {step} is saved", "--resume goes on from there")] if step else []


def _is_lost(error: Exception) -> bool:
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return False
    broken = isinstance(error, RuntimeError) and any(word in str(error) for word in _GLOO)
    return broken or isinstance(error, dist.DistError)


def _peers(place: StageDirectory) -> list[Problem]:
    """What the others of the group have to say, or that one has nothing to say any more."""
    mine, world = spawn.rank(), int(os.environ["WORLD_SIZE"])
    until = time.monotonic() + WORDS_SECONDS
    while True:
        signs = liveness.signs(place.path)
        words = [
            Problem(liveness.named(rank, sign), f"stopped:\n{sign.error}")
            for rank, sign in signs.items()
            if rank != mine and sign.error
        ]
        if words or time.monotonic() > until:
            break
        time.sleep(0.05)
    if words:
        return words
    absent = [f"rank {rank}" for rank in range(world) if rank not in signs]
    what = f"{', '.join(absent)} never started" if absent else "lost its connection to another process of the group"
    fix = "what started the processes names the one that ended first (torchrun: root cause)"
    return [Problem(liveness.named(mine, signs.get(mine)), what, fix)]
