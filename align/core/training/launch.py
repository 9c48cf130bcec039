"""``align train``: every stage of a run in order, each in this process or in workers that it starts."""

from __future__ import annotations

import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist

from align.core.algorithm.contract import Algorithm, Online, RowGenerator
from align.core.config import run_file
from align.core.engine import checkpoint, processes
from align.core.plugin_system.registry import registry
from align.core.training.data_stage import DataStage
from align.core.training.reward_stage import RewardStage
from align.core.training.row_stage import RowStage
from align.core.training.run_directory import RunDirectory, StageDirectory, located, remembered
from align.core.training.stage import StageRunner
from align.core.util import liveness
from align.core.util.liveness import RANKS, Interrupted, Limits, failed, watched
from align.core.util.progress import showing, working
from align.core.util.system_errors import explain
from align.schemas.errors import AlignError, Problem
from align.schemas.hardware import Hardware
from align.schemas.results import StageResult
from align.schemas.run import Run, Stage

KINDS: tuple[tuple[type[Algorithm], type[StageRunner[Any]]], ...] = (
    (RowGenerator, RowStage),
    (Online, RewardStage),
    (Algorithm, DataStage),
)
"""The kind of stage for each class of algorithm; the first class that an algorithm derives from counts."""


def stage_runner(directory: RunDirectory, stage: Stage, progress: bool) -> StageRunner[Any]:
    """Return what runs a stage, by the class of its algorithm. Raises AlignError for settings of no algorithm."""
    algorithm: Algorithm = registry.build("algorithm", located(stage, directory.export_of).algorithm)
    kind = next(kind for base, kind in KINDS if isinstance(algorithm, base))
    return kind(directory, stage, algorithm, progress)


def train(run: Run, *, resume: bool = False, progress: bool = True) -> list[StageResult]:
    """Run every stage that is not finished yet; returns all of them.

    Raises AlignError for whatever the user can fix, and ``Interrupted`` after a signal, once the step is saved.
    """
    run = remembered(run)
    validate_run(run)
    directory = RunDirectory(run)
    if processes.rank() != 0:
        return [_stage(directory, stage, progress=False) for stage in run.stages]
    with directory:
        directory.begin(resume)
        registry.notify("run_started", run=run, directory=directory.path)
        directory.note_files()
        results = [_stage(directory, stage, progress) for stage in run.stages]
    registry.notify("run_finished", run=run, directory=directory.path, results=results)
    return results


def validate_run(run: Run) -> None:
    """Check what stages read of each other, and ask the plugins (``check_run``).

    Prints warnings; raises AlignError for errors.
    """
    problems = [*_mismatched_exports(run), *registry.collect("check_run", run=run, hardware=largest(run))]
    errors = [problem for problem in problems if problem.level == "error"]
    if errors:
        raise AlignError.gather(errors)
    if processes.rank() == 0:
        for problem in problems:
            print(problem, file=sys.stderr)


def largest(run: Run) -> Hardware:
    """Return the hardware of the stage with the most processes."""
    return max((processes.launched(stage.devices) for stage in run.stages), key=lambda found: found.world_size)


def _mismatched_exports(run: Run) -> Iterator[Problem]:
    """Yield a problem for each stage that reads rows of one that makes a model, or a model of one that makes rows."""
    algorithms = {stage.name: registry.build("algorithm", stage.algorithm) for stage in run.stages}
    makes_rows = {name for name, algorithm in algorithms.items() if algorithm.makes_rows}
    for stage in run.stages:
        kind, _, name = stage.model.path.partition(":")
        if kind == "stage" and name in makes_rows:
            yield Problem(
                f"{stage.name}: model.path", f"is stage:{name}, which makes rows and no model", "name another"
            )
        for source in (*stage.data.train, *(stage.data.validation or ())):
            kind, _, name = source.path.partition(":")
            if kind == "stage" and name not in makes_rows:
                yield Problem(f"{stage.name}: data", f"is stage:{name}, which makes no rows", "name a best_of_n stage")


def _stage(directory: RunDirectory, stage: Stage, progress: bool) -> StageResult:
    """Run one stage and return its result: skipped if done, else here, or in workers if it wants several processes."""
    place = directory.stage(stage.name)
    if place.result() is None:
        if processes.rank() == 0:
            with working(f"{stage.name}: verifying what it learns from"):
                directory.begin_stage(stage)
        hardware = processes.launched(stage.devices)
        if processes.under_launcher() or hardware.world_size == 1:
            run_here(directory, stage, progress)
        else:
            arguments = ["worker", str(directory.path), stage.name, *["--progress"] * progress]
            ended = processes.run_workers(arguments, hardware.devices, limits(stage))
            failure = None if ended is None else worker_failed(ended, place)
            shutil.rmtree(place.path / RANKS, ignore_errors=True)  # read above; of no use to the next start
            if failure is not None:
                raise failure
    result = place.result()
    assert result is not None
    return result


def run_here(directory: RunDirectory, stage: Stage, progress: bool) -> None:
    """Run one stage in this process (and its group), export it and record it as done."""
    place = directory.stage(stage.name)
    watching = watched(place.path, processes.rank(), processes.world_size(), limits(stage))
    with showing(progress), watching, explained_failures(place):
        stage_runner(directory, stage, progress).run()


def limits(stage: Stage) -> Limits:
    """Return how many seconds the stage's processes wait."""
    return Limits(stage.devices.timeout, stage.devices.stop_timeout)


def work(directory: Path, name: str, progress: bool) -> None:
    """Run one process of a stage's group, which ``_stage`` started."""
    run = run_file.load(directory / "run.yaml")
    stage = next(stage for stage in run.stages if stage.name == name)
    try:
        run_here(RunDirectory(run), stage, progress and processes.rank() == 0)
    except AlignError as error:
        failed(str(error))  # only rank 0 prints errors, and this one may be why rank 0 lost its connection
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


# --- messages for a stage that failed: which process, on which machine, at which step, and what is saved -------------

_GLOO = ("gloo/transport", "Connection closed by peer", "Connection reset by peer")
"""Text in gloo's RuntimeErrors about a broken connection; torch has no class for them."""
REPORT_SECONDS = 1.0
"""Seconds that a process which lost its peers waits for one of them to report why it ended."""


class ProcessLost(AlignError):
    """Raised for a collective that broke because another process is gone or silent: that process is the cause."""


@contextmanager
def explained_failures(place: StageDirectory) -> Iterator[None]:
    """Raise errors of the machine and lost connections to other processes as AlignError, with the saved step."""
    try:
        yield
    except AlignError:
        raise
    except Exception as error:
        found = explain(error)
        if found is None and not _is_lost(error):
            raise
        problems = _peers(place) if found is None else found.problems
        kind = ProcessLost if found is None else AlignError
        raise kind("", problems=[*problems, *_saved(place)]) from error


def worker_failed(ended: processes.Ended, place: StageDirectory) -> BaseException:
    """Return the exception to raise for the worker that ended first."""
    status = ended.status
    number = -status if status < 0 else status - 128
    if number in liveness.SIGNALS:
        return Interrupted(number, checkpoint.last_step(place.checkpoints))
    sign = liveness.signs(place.path).get(ended.rank)
    reported = sign.error if sign is not None else ""
    # Rank 0 has printed its error on this terminal; another rank's is repeated only where it is not above already.
    if status == liveness.FAILED and not (ended.rank and reported and reported not in ended.stderr):
        above = Problem(str(place.path), "a worker stopped for the reason above")
        return AlignError("", problems=[above, *_saved(place)])
    who = liveness.named(ended.rank, sign) if sign else f"rank {ended.rank} on {socket.gethostname()}"
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
    return AlignError("", problems=[*problems, *_saved(place)])


def _saved(place: StageDirectory) -> list[Problem]:
    step = checkpoint.last_step(place.checkpoints)
    return [Problem(str(place.path), f"step {step} is saved", "--resume goes on from there")] if step else []


def _is_lost(error: Exception) -> bool:
    if processes.world_size() == 1:
        return False
    broken = isinstance(error, RuntimeError) and any(text in str(error) for text in _GLOO)
    return broken or isinstance(error, dist.DistError)


def _peers(place: StageDirectory) -> list[Problem]:
    """Return the errors that other processes of the group reported; without any, that the connection was lost."""
    mine, world = processes.rank(), processes.world_size()
    until = time.monotonic() + REPORT_SECONDS  # a peer may be about to write its error
    while True:
        signs = liveness.signs(place.path)
        reported = [
            Problem(liveness.named(rank, sign), f"stopped:\n{sign.error}")
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
    return [Problem(liveness.named(mine, signs.get(mine)), what, fix)]
