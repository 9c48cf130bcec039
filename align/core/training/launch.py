"""``align train``: every stage of a run in order, each in this process or in workers that it starts."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from align.core.algorithm.contract import Algorithm, Online, RowGenerator
from align.core.config import run_file
from align.core.engine import processes
from align.core.plugin_system.registry import registry
from align.core.training.data_stage import DataStage
from align.core.training.failures import explained_failures, worker_failed
from align.core.training.gate_export import check_gate, pass_gate
from align.core.training.reward_stage import RewardStage
from align.core.training.row_stage import RowStage
from align.core.training.run_directory import RunDirectory, located, remembered
from align.core.training.stage import StageRunner, resolve_strategy
from align.core.util.liveness import Limits, watched
from align.core.util.profile import profiling
from align.core.util.progress import showing, working
from align.core.util.signs_of_life import RANKS
from align.schemas import gpus as gpu_list
from align.schemas.errors import AlignError, Problem
from align.schemas.hardware import Footprint, Hardware
from align.schemas.results import StageResult
from align.schemas.run import Run, Stage

KINDS: tuple[tuple[type[Algorithm], type[StageRunner[Any]]], ...] = (
    (RowGenerator, RowStage),
    (Online, RewardStage),
    (Algorithm, DataStage),
)
"""The kind of stage for each class of algorithm; the first class that an algorithm derives from counts."""


def stage_runner(
    directory: RunDirectory, stage: Stage, progress: bool, hardware: Hardware | None = None
) -> StageRunner[Any]:
    """Return what runs a stage, by the class of its algorithm. Raises AlignError for settings of no algorithm.

    hardware: to plan for; None: what the stage's processes run on.
    """
    algorithm: Algorithm = registry.build("algorithm", located(stage, directory.export_of).algorithm)
    kind = next(kind for base, kind in KINDS if isinstance(algorithm, base))
    return kind(directory, stage, algorithm, progress, hardware)


def train(run: Run, *, resume: bool = False, progress: bool = True, profile: bool = False) -> list[StageResult]:
    """Run every stage that is not finished yet; returns all of them.

    profile: write ``profile.json`` into each stage's directory.

    Raises AlignError for whatever the user can fix, and ``Interrupted`` after a signal, once the step is saved.
    """
    run = remembered(run)
    validate_run(run)
    directory = RunDirectory(run)
    if processes.rank() != 0:
        return [run_stage(directory, stage, progress=False, profile=profile) for stage in run.stages]
    with directory:
        directory.begin(resume)
        registry.notify("run_started", run=run, directory=directory.path)
        directory.note_files()
        results = [run_stage(directory, stage, progress, profile) for stage in run.stages]
    registry.notify("run_finished", run=run, directory=directory.path, results=results)
    return results


def validate_run(run: Run, hardware: Hardware | None = None) -> None:
    """Check what stages read of each other, and ask the plugins (``check_run``).

    hardware: what the run will have; default: what is here. Prints warnings; raises AlignError for errors.
    """
    problems = run_problems(run, hardware or largest(run))
    for gate in (stage.gate for stage in run.stages if stage.gate is not None):
        check_gate(gate)
    errors = [problem for problem in problems if problem.level == "error"]
    if errors:
        raise AlignError.gather(errors)
    if processes.rank() == 0:
        for problem in problems:
            print(problem, file=sys.stderr)


def validate_elsewhere(run: Run, nodes: int | None, gpus: int | None, gpu: str | None) -> None:
    """Check a run that other machines will have: as ``validate_run`` does in the first of its processes there.

    nodes, gpus: machines, and processes on each; default: the run file's. gpu: the name of a listed GPU; None: unknown,
    unless there is one here. Prints warnings; raises AlignError with the words of that process.
    """
    devices = [stage.devices for stage in run.stages]
    local = gpus or max((each.count for each in devices if each.count != "auto"), default=1)
    world = local * (nodes or max(each.nodes for each in devices))
    # The place that torchrun gives its first process: the same refusals come from the same code.
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(local)}
    hardware = largest(run)
    if gpu is not None and any(each.accelerator != "cpu" for each in devices):
        known = gpu_list.named(gpu)
        hardware = replace(hardware, accelerator="cuda", name=known.name, memory=round(known.memory))
    elif hardware.accelerator == "cpu" and any(each.accelerator == "auto" for each in devices):
        hardware = replace(hardware, accelerator="cuda", name="", memory=0)  # the nodes have what this machine has not
    if refused := [*_refused_settings(run, hardware)]:
        raise AlignError.gather(refused)
    validate_run(remembered(run), hardware)


def _refused_settings(run: Run, hardware: Hardware) -> Iterator[Problem]:
    """Yield what each stage refuses by its settings alone; its own processes do when they prepare it."""
    directory = RunDirectory(run)
    for stage in run.stages:
        try:
            stage_runner(directory, stage, progress=False, hardware=hardware).check_settings()
            resolve_strategy(stage, hardware, Footprint(0, 0))  # of a model of any size
        except AlignError as error:
            yield from error.problems


def run_problems(run: Run, hardware: Hardware) -> list[Problem]:
    """Return what is wrong with a run on some hardware: with what its stages read of each other, and by the plugins."""
    return [*_mismatched_exports(run), *registry.collect("check_run", run=run, hardware=hardware)]


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


def run_stage(directory: RunDirectory, stage: Stage, progress: bool, profile: bool = False) -> StageResult:
    """Run one stage, unless it is done, and return its result.

    It runs in this process, or in workers where it wants several and no launcher has started them.
    """
    place = directory.stage(stage.name)
    if place.result() is None:
        if processes.rank() == 0:
            with working(f"{stage.name}: verifying what it learns from"):
                directory.begin_stage(stage)
        hardware = processes.launched(stage.devices)
        with _noting_time(directory, stage.name, hardware):
            if processes.under_launcher() or hardware.world_size == 1:
                run_in_process(directory, stage, progress, profile)
            else:
                flags = [*["--progress"] * progress, *["--profile"] * profile]
                arguments = ["worker", str(directory.path), stage.name, *flags]
                ended = processes.run_workers(arguments, hardware.devices, limits(stage))
                failure = None if ended is None else worker_failed(ended, place)
                shutil.rmtree(place.path / RANKS, ignore_errors=True)  # read above; of no use to the next start
                if failure is not None:
                    raise failure
    if stage.gate is not None:
        pass_gate(directory, stage, stage.gate)
    result = place.result()
    assert result is not None
    return result


@contextmanager
def _noting_time(directory: RunDirectory, stage: str, hardware: Hardware) -> Iterator[None]:
    """Add the seconds inside to those that the manifest has of a stage, and note what it ran on.

    An interrupted start counts too; one that was killed leaves nothing.
    """
    started = time.monotonic()
    try:
        yield
    finally:
        if processes.rank() == 0:
            seconds = directory.noted(stage).get("seconds", 0.0) + time.monotonic() - started
            device = {"accelerator": hardware.accelerator, "name": hardware.name, "devices": hardware.world_size}
            with suppress(OSError):  # a full disk is reported by what it stopped
                directory.note(stage, seconds=round(seconds, 3), hardware=device)


def run_in_process(directory: RunDirectory, stage: Stage, progress: bool, profile: bool = False) -> None:
    """Run one stage in this process (and its group), export it and record it as done."""
    place = directory.stage(stage.name)
    watching = watched(place.path, processes.rank(), processes.world_size(), limits(stage))
    whole = profile and processes.rank() == 0
    measured = profiling(place.path if whole else None, processes.launched(stage.devices).accelerator, not whole)
    with showing(progress), watching, explained_failures(place), measured:
        stage_runner(directory, stage, progress).run()


def limits(stage: Stage) -> Limits:
    """Return how many seconds the stage's processes wait."""
    return Limits(stage.devices.timeout, stage.devices.stop_timeout, stage.devices.heartbeat)


def run_worker(directory: Path, name: str, progress: bool, profile: bool = False) -> None:
    """Run one process of a stage's group, which ``run_stage`` started."""
    run = run_file.load(directory / "run.yaml")
    stage = next(stage for stage in run.stages if stage.name == name)
    try:
        run_in_process(RunDirectory(run), stage, progress and processes.rank() == 0, profile)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
