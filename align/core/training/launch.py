"""Run -> stages, each here or in workers: the whole of ``align train``."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch.distributed as dist

from align.core.algorithm.online import RowGenerator
from align.core.config import run_file
from align.core.engine import processes
from align.core.plugin_system.registry import registry
from align.core.training.fit import fit, limits, worker_failed
from align.core.training.run_directory import RunDirectory, remembered
from align.core.util.liveness import RANKS, failed
from align.core.util.progress import working
from align.schemas.errors import AlignError, Problem
from align.schemas.hardware import Hardware
from align.schemas.results import StageResult
from align.schemas.run import Run, Stage


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
    """Ask what stages hand on, and the plugins (``check_run``); raises AlignError for errors, prints warnings."""
    problems = [*_not_handed_on(run), *registry.collect("check_run", run=run, hardware=largest(run))]
    errors = [problem for problem in problems if problem.level == "error"]
    if errors:
        raise AlignError.gather(errors)
    if processes.rank() == 0:
        for problem in problems:
            print(problem, file=sys.stderr)


def largest(run: Run) -> Hardware:
    """What the stage with the most processes runs on."""
    return max((processes.launched(stage.devices) for stage in run.stages), key=lambda found: found.world_size)


def _not_handed_on(run: Run) -> Iterator[Problem]:
    """Rows wanted of a stage that makes a model, or a model of one that makes rows."""
    algorithms = {stage.name: registry.build("algorithm", stage.algorithm) for stage in run.stages}
    makes_rows = {name for name, algorithm in algorithms.items() if isinstance(algorithm, RowGenerator)}
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
    """One stage: skipped when done, here when one process does it or this is one of a group, else in workers."""
    place = directory.stage(stage.name)
    if place.result() is None:
        if processes.rank() == 0:
            with working(f"{stage.name}: verifying what it learns from"):
                directory.begin_stage(stage)
        hardware = processes.launched(stage.devices)
        if processes.under_launcher() or hardware.world_size == 1:
            fit(directory, stage, progress)
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


def work(directory: Path, name: str, progress: bool) -> None:
    """One process of a stage's group, started by ``_stage``."""
    run = run_file.load(directory / "run.yaml")
    stage = next(stage for stage in run.stages if stage.name == name)
    try:
        fit(RunDirectory(run), stage, progress and processes.rank() == 0)
    except AlignError as error:
        failed(str(error))  # only rank 0 prints errors, and this one may be why rank 0 lost its connection
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
