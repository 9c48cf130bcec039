"""A few real steps of a stage in a scratch directory, watched: the peak of each phase, and how long a step takes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch

from align.core.algorithm.online import RowGenerator
from align.core.engine.module import AlignModule
from align.core.engine.steps import StepBatch
from align.core.estimation.batches import Planned, planned
from align.core.estimation.dry_run import held_tensors, optimizer_step
from align.core.estimation.memory_tracker import Tracker
from align.core.online.phases import RolloutSteps
from align.core.training.reward_stage import opened
from align.core.training.run_directory import RunDirectory
from align.core.training.stage import Setup, set_up
from align.core.util.progress import is_showing, track
from align.schemas.engine import Micro
from align.schemas.errors import AlignError
from align.schemas.hardware import Hardware
from align.schemas.run import Run, Stage

MANY = 1000
"""Steps that the plan is made for; few of them are run."""


@dataclass(frozen=True, slots=True)
class Seen:
    """peaks: bytes of ``training`` and ``generation``. seconds: of one step with its share of answering.

    planned: the step that was watched, for the formulas to be asked about the same.
    """

    peaks: Mapping[str, int]
    seconds: float
    planned: Planned


def calibrate(stage: Stage, hardware: Hardware) -> Seen:
    """Run a few steps of a stage on one device here. Raises AlignError where training would.

    All of a first phase (offline: one step), which makes the optimizer's state; then one step that is watched, with its
    phase's answering; then one that is timed.
    """
    devices = stage.devices.model_copy(update={"count": 1, "nodes": 1})
    train = stage.train.model_copy(update={"max_steps": MANY})
    stage = stage.model_copy(update={"devices": devices, "train": train})
    with tempfile.TemporaryDirectory() as scratch:
        directory = RunDirectory(Run(output=scratch, stages=[stage]))
        directory.stage(stage.name).path.mkdir(parents=True)
        setup = set_up(directory, stage, progress=is_showing())
        if isinstance(setup.algorithm, RowGenerator):
            raise AlignError("learns nothing, so there is no step to measure", where=stage.name)
        speaking: AbstractContextManager[None] = nullcontext()
        if isinstance(setup.phases, RolloutSteps):
            speaking = opened(setup.phases.collector)
        with speaking:
            return _run(setup, hardware)


def _run(setup: Setup, hardware: Hardware) -> Seen:
    cuda = hardware.accelerator == "cuda"
    module = AlignModule(setup.stage, setup.policy, setup.algorithm, setup.reference, MANY, critic=setup.critic)
    module.trainer = SimpleNamespace(  # type: ignore[assignment]
        world_size=1, global_step=0, strategy=SimpleNamespace(backward=lambda loss, _: loss.backward())
    )
    device = torch.device("cuda" if cuda else "cpu")
    module.to(device)
    optimizer = module.configure_optimizers()["optimizer"]
    peaks: dict[str, int] = {}
    spent: list[tuple[float, float]] = []  # seconds of getting a step's batch and of the step itself
    phase = setup.phases.steps_per_phase if isinstance(setup.phases, RolloutSteps) else 1
    steps = _steps(setup)
    for turn in track(range(phase + 2), f"{setup.stage.name}: measured steps"):
        watch: AbstractContextManager[dict[str, Any]] = nullcontext({})
        if turn == phase:
            watch = _watch(module, optimizer, cuda)
        started = time.perf_counter()
        with watch as seen:
            step: StepBatch = next(steps).to(device)
            fetched = time.perf_counter()
            if isinstance(setup.phases, RolloutSteps) and seen:
                peaks["generation"] = seen["peak"]()
                seen["restart"]()
            optimizer_step(module, step, optimizer, setup.stage, device.type)
            if seen:
                peaks["training"] = seen["peak"]()
                watched = step
        if cuda:
            torch.cuda.synchronize()
        spent.append((fetched - started, time.perf_counter() - fetched))
    answering = min(spent[0][0], spent[phase][0])  # the first is cold, the other watched
    return Seen(peaks, answering / phase + spent[-1][1], _as_planned(setup, watched, hardware))


def _steps(setup: Setup) -> Iterator[StepBatch]:
    done = 0
    while True:
        for step in setup.phases.loader(*setup.phases.locate(done)):
            yield step
            done += 1


@contextmanager
def _watch(module: AlignModule, optimizer: torch.optim.Optimizer, cuda: bool) -> Iterator[dict[str, Any]]:
    """On a GPU the allocator's own peak, else tensor storage."""
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        yield {"peak": torch.cuda.max_memory_allocated, "restart": torch.cuda.reset_peak_memory_stats}
        return
    tracker = Tracker()
    tracker.enter(held_tensors(module))
    tracker.enter(parameter.grad for parameter in module.parameters() if parameter.grad is not None)
    tracker.enter(value for state in optimizer.state.values() for value in state.values())
    kept = getattr(module.reference, "values", {})
    tracker.enter(kept.values())
    with tracker:
        yield {"peak": lambda: tracker.peak, "restart": tracker.start}


def _as_planned(setup: Setup, step: StepBatch, hardware: Hardware) -> Planned:
    """The step that was run, in the estimate's terms."""
    shapes = [(*m.input_ids_RL.shape, len(m.target_T), m.attention_mask_RL is not None) for m in step.micros]
    micros = tuple(Micro(rows, width, scored, padded) for rows, width, scored, padded in shapes)
    plan = planned(setup.stage, setup.algorithm, hardware.accelerator, 1, setup.cutter.layout)
    return replace(plan, batches=replace(plan.batches, micros=micros))
