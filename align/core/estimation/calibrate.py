"""Calibration of an estimate: a few real steps of a stage in a scratch directory, with peak memory and time."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch

from align.core.data.batch import MicroBatch
from align.core.engine.module import AlignModule
from align.core.engine.steps import StepBatch
from align.core.estimation.batches import Planned, planned
from align.core.estimation.dry_run import held_tensors, optimizer_step
from align.core.estimation.memory_tracker import MemoryTracker
from align.core.training.launch import stage_runner
from align.core.training.run_directory import RunDirectory
from align.core.training.stage import PreparedStage
from align.core.util.progress import is_showing, track
from align.schemas.engine import Micro
from align.schemas.errors import AlignError
from align.schemas.hardware import Hardware
from align.schemas.run import Run, Stage

MANY = 1000
"""Number of steps that the plan is made for; few of them are run."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Measurements of a few steps.

    peaks: bytes of ``training`` and ``generation``. seconds: of one step with its share of sampling. planned: the step
    that was measured, so that the formulas can be evaluated for the same one.
    """

    peaks: Mapping[str, int]
    seconds: float
    planned: Planned


def calibrate(stage: Stage, hardware: Hardware) -> Calibration:
    """Run a few steps of a stage on one device of this machine. Raises AlignError where training would.

    First a whole phase (offline: one step), which makes the optimizer's state; then a step whose memory is measured,
    with the sampling of its phase; then a step whose time is measured, since measuring memory slows the other down.
    """
    devices = stage.devices.model_copy(update={"count": 1, "nodes": 1})
    train = stage.train.model_copy(update={"max_steps": MANY})
    stage = stage.model_copy(update={"devices": devices, "train": train})
    with tempfile.TemporaryDirectory() as scratch:
        directory = RunDirectory(Run(output=scratch, stages=[stage]))
        directory.stage(stage.name).path.mkdir(parents=True)
        runner = stage_runner(directory, stage, progress=is_showing())
        if runner.algorithm.makes_rows:
            raise AlignError("learns nothing, so there is no step to measure", where=stage.name)
        ready = runner.prepare()
        with runner.running(ready):
            return _run(ready, hardware)


def _run(ready: PreparedStage[Any], hardware: Hardware) -> Calibration:
    cuda = hardware.accelerator == "cuda"
    module = AlignModule(
        ready.stage, ready.model.policy, ready.algorithm, ready.model.reference, MANY, critic=ready.model.critic
    )
    module.trainer = SimpleNamespace(  # type: ignore[assignment]
        world_size=1, global_step=0, strategy=SimpleNamespace(backward=lambda loss, _: loss.backward())
    )
    device = torch.device("cuda" if cuda else "cpu")
    module.to(device)
    optimizer = module.configure_optimizers()["optimizer"]
    peaks: dict[str, int] = {}
    spent: list[tuple[float, float]] = []  # seconds of getting a step's batch and of the step itself
    phase = ready.steps.steps_per_rollout or 1
    steps = _steps(ready)
    for turn in track(range(phase + 2), f"{ready.stage.name}: measured steps"):
        watch: AbstractContextManager[dict[str, Any]] = nullcontext({})
        if turn == phase:
            watch = _watch(module, optimizer, cuda)
        started = time.perf_counter()
        with watch as memory:
            step: StepBatch = next(steps).to(device)
            fetched = time.perf_counter()
            if ready.algorithm.samples and memory:
                peaks["generation"] = memory["peak"]()
                memory["restart"]()
            optimizer_step(module, step, optimizer, ready.stage, device.type)
            if memory:
                peaks["training"] = memory["peak"]()
                watched = step
        if cuda:
            torch.cuda.synchronize()
        spent.append((fetched - started, time.perf_counter() - fetched))
    # Sampling was timed twice, once cold and once while memory was measured: the shorter time is nearer to the truth.
    sampling = min(spent[0][0], spent[phase][0])
    return Calibration(peaks, sampling / phase + spent[-1][1], _as_planned(ready, watched, hardware))


def _steps(ready: PreparedStage[Any]) -> Iterator[StepBatch]:
    done = 0
    while True:
        for step in ready.steps.loader(*ready.steps.locate(done)):
            yield step
            done += 1


@contextmanager
def _watch(module: AlignModule, optimizer: torch.optim.Optimizer, cuda: bool) -> Iterator[dict[str, Any]]:
    """Measure peak memory: on a GPU by its allocator, on the CPU by tensor storage (``MemoryTracker``)."""
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        yield {"peak": torch.cuda.max_memory_allocated, "restart": torch.cuda.reset_peak_memory_stats}
        return
    tracker = MemoryTracker()
    tracker.enter(held_tensors(module))
    tracker.enter(parameter.grad for parameter in module.parameters() if parameter.grad is not None)
    tracker.enter(value for state in optimizer.state.values() for value in state.values())
    kept = getattr(module.reference, "values", {})
    tracker.enter(kept.values())
    with tracker:
        yield {"peak": lambda: tracker.peak, "restart": tracker.start}


def _as_planned(ready: PreparedStage[Any], step: StepBatch, hardware: Hardware) -> Planned:
    """Return the step that was run in the form of the estimate."""
    shapes = [(*m.input_ids_RL.shape, len(m.target_T), _masked(m)) for m in step.micros]
    micros = tuple(Micro(rows, width, scored, padded) for rows, width, scored, padded in shapes)
    plan = planned(ready.stage, ready.algorithm, hardware.accelerator, 1, ready.batcher.layout)
    return replace(plan, batches=replace(plan.batches, micros=micros))


def _masked(micro: MicroBatch) -> bool:
    """Return True if attention is given a mask: for padding, or for sequences that share a prefix."""
    return micro.attention_mask_RL is not None or micro.subtree_end_RL is not None
