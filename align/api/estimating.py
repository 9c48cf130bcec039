"""A run's estimate: the engine's facts (core) put into the formulas (advisor)."""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

from align.advisor.estimate.model_shape import ModelShape, named_size, shape_of_directory, typical_shape
from align.advisor.estimate.remedies import (
    COSTS,
    EstimateRequest,
    fullest,
    phases_of,
    remedies_for,
    strategy_of,
)
from align.advisor.estimate.stage_estimate import StageEstimate, estimate_stage
from align.advisor.estimate.training_cost import read_prices
from align.api.training import RunLike, as_run
from align.core.engine import processes
from align.core.estimation.resolved_stage import ResolvedStage, config_directory, placement_of, resolve_stage
from align.core.training.launch import run_problems
from align.core.util.detect_hardware import present
from align.core.util.system_errors import explaining
from align.schemas import gpus
from align.schemas.errors import AlignError, Problem
from align.schemas.gpus import Device
from align.schemas.hardware import Hardware
from align.schemas.run import Run, Stage

SHARDED = ("weights", "optimizer", "gradients", "reference", "critic")
"""The parts that fsdp splits."""
NOT_IN_TENSORS = ("gathered", "vllm", "base")
"""The parts that a dry run in one process cannot see."""


@dataclass(frozen=True, slots=True)
class RunEstimate:
    """Memory and time of a run, stage by stage. problems: what a launch would report about the whole run."""

    stages: Sequence[StageEstimate]
    problems: Sequence[Problem] = ()

    @property
    def fits(self) -> bool:
        """Return True if every stage can be launched: it fits, if tightly, and training does not refuse it."""
        stopped = any(problem.level == "error" for problem in self.problems)
        return not stopped and all(stage.fits for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        """Return the same as plain data, of schema ``align.estimate/1``; bytes as whole numbers."""
        problems = [{"where": p.where, "what": p.what, "fix": p.fix, "level": p.level} for p in self.problems]
        stages = [stage.as_json() for stage in self.stages]
        return {"schema": "align.estimate/1", "stages": stages, "problems": problems}

    def __str__(self) -> str:
        """Return the text that ``align estimate`` prints, without colours."""
        from rich.console import Console

        from align.advisor.estimate.show_estimate import show, show_problems

        console = Console(file=StringIO(), width=100, highlight=False, soft_wrap=True, color_system=None)
        with console.capture() as captured:
            for stage in self.stages:
                show(stage, console)
            show_problems(self.problems, console)
        return captured.get().rstrip()


@explaining()
def estimate(
    run: RunLike,
    *,
    device: str | None = None,
    devices: int | None = None,
    nodes: int | None = None,
    memory_gb: float | None = None,
    dry_run: bool = False,
    calibrate: bool = False,
    prices: str | Path | None = None,
) -> RunEstimate:
    """Estimate the memory that a run takes on each device, whether it fits, what would help, and how long it takes.

    run: ``align.load(...)``, or the path of a run file. device: an accelerator by name (``"H100"``, ``"RTX 4090"``);
    None: what this machine has. devices: how many of them are in each machine, and nodes: how many machines share each
    step; by default what the run file's ``devices`` say. memory_gb: memory of each device, in 10^9 bytes. dry_run:
    count the bytes of real steps under tensors without numbers. calibrate: run a few real steps here, and correct the
    estimate by them. prices: a YAML file of what an hour of each device costs.

    Imports torch. Raises AlignError for a run file that is wrong, and for what cannot be known or run.
    """
    if any(count is not None and count < 1 for count in (devices, nodes)):
        raise AlignError("devices and nodes are above 0", where="estimate")
    if memory_gb is not None and not memory_gb > 0:
        raise AlignError("memory_gb is above 0", where="estimate")
    checked = as_run(run)
    per_hour, currency, _ = (None, "", "") if prices is None else read_prices(Path(prices))
    memory = None if memory_gb is None else memory_gb * 1e9
    stages, planned = [], []
    for stage in checked.stages:
        hardware = planned_hardware(stage, device, devices, memory, nodes)
        planned.append(hardware)
        stages.append(_stage(checked, stage, hardware, dry_run, calibrate, per_hour, currency))
    largest = max(planned, key=lambda hardware: hardware.world_size)
    return RunEstimate(stages, run_problems(checked, largest))


def what_to_turn_down(run: Run, name: str) -> list[Problem]:
    """Return the settings by which a stage that ran out of memory here would fit, by the estimate; empty if unknown.

    Memory did run out, so at least all of it was needed: activations and logits are scaled up to that.
    """
    stage = next(stage for stage in run.stages if stage.name == name)
    hardware = present(stage.devices) if not processes.under_launcher() else processes.launched(stage.devices)
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if hardware.accelerator == "cpu" and limit != resource.RLIM_INFINITY:
        hardware = replace(hardware, memory=min(hardware.memory, limit))
    known, request = _requested(run, stage, hardware, None)
    parts = fullest(phases_of(request, name=strategy_of(request)))
    loose = sum(parts.get(part, 0.0) for part in ("activations", "logits"))
    fixed = sum(parts.values()) - loose
    factor = max(1.0, (request.device.memory - fixed) / loose) if loose else 1.0
    lines = []
    for setting, fit in remedies_for(request, factor):
        key, _, _ = setting.partition("=")
        needs = f"{fit.total_gb:,.2f} GB of {request.device.memory / 1e9:,.2f} GB"
        lines.append(f"{setting} (now {_value(known.stage, key)}): {needs}; {COSTS[key]}")
    if not lines:
        return [
            Problem("by the estimate", "no setting makes it fit", "take more memory, more devices or a smaller model")
        ]
    return [Problem("by the estimate this would help, each on top of those before", "\n    ".join(lines))]


def _value(stage: Stage, key: str) -> str:
    """Return the value of a setting of a stage in words: ``model.adapter.r`` is ``not set`` without an adapter."""
    value: Any = stage.model_dump(mode="json")
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    value = value.get("type") if isinstance(value, dict) else value
    return "not set" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def planned_hardware(
    stage: Stage, device: str | None, devices: int | None, memory: float | None, nodes: int | None = None
) -> Hardware:
    """Return the hardware to plan a stage for. devices: in each of ``nodes`` machines. memory: bytes of each device.

    Without a device and a memory it is this machine's. Raises AlignError for a device that is not in the table of GPUs
    and comes without a memory.
    """
    if device is None and memory is None:
        here = present(stage.devices)
        if devices is None:
            return here if nodes is None else replace(here, nodes=nodes)
        return replace(here, devices=devices, nodes=nodes or 1)
    name = device or "GPU"
    if device is not None and (memory is None or gpus.find(device) is not None):
        known = gpus.named(device)
        name, memory = known.name, memory or known.memory
    assert memory is not None  # the table's, or the given one
    declared = 1 if stage.devices.count == "auto" else stage.devices.count
    count = nodes or (stage.devices.nodes if devices is None else 1)
    return Hardware("cuda", devices or declared, count, round(memory), name=name)


def _stage(
    run: Run,
    stage: Stage,
    hardware: Hardware,
    dry_run: bool,
    calibrate: bool,
    prices: Mapping[str, float] | None,
    currency: str,
) -> StageEstimate:
    """Estimate one stage by formulas; on request count a dry run as well, and correct by real steps."""
    exactly = "calibrate" if calibrate else None
    known, request = _requested(run, stage, hardware, "dry_run" if dry_run else exactly)
    found = estimate_stage(request, prices, currency)
    if dry_run:
        found = replace(found, counted=_counted(known, hardware, found))
    if calibrate:
        found = _calibrated(known, hardware, request, found, prices, currency)
    return found


def _requested(
    run: Run, stage: Stage, hardware: Hardware, exactly: str | None
) -> tuple[ResolvedStage, EstimateRequest]:
    """Return a stage with the inputs of its estimate. exactly: an option that needs the model itself."""
    billions = run.project.model.params_b if run.project else None
    billions = billions or named_size(stage.model.path)
    known = resolve_stage(run.stages, stage, hardware.accelerator, hardware.world_size, sized=billions is not None)
    request = EstimateRequest(
        stage=known.stage,
        needs=known.needs,
        shape=_shape(known, billions, exactly),
        batches=known.planned.batches,
        device=_device(hardware),
        devices=hardware.world_size,
        accelerator=hardware.accelerator,
        nodes=hardware.nodes,
        place=placement_of,
        rewards=_reward_models(known.stage),
    )
    return known, request


def _shape(known: ResolvedStage, billions: float | None, exactly: str | None) -> ModelShape:
    """Return the model's shape: its config's, else one that is typical of so many billion parameters.

    Raises AlignError where an option, ``exactly``, needs the model itself and there is none.
    """
    if known.directory is not None:
        return shape_of_directory(known.directory)
    if exactly is not None:
        raise AlignError(
            f"--{exactly.replace('_', '-')} needs a model whose config.json can be had",
            f"give a directory with one, or leave it out (from Python {exactly}=True): a typical shape is taken then",
            where=f"{known.stage.name}: model.path: {known.stage.model.path}",
        )
    assert billions is not None
    return typical_shape(billions)


def _reward_models(stage: Stage) -> float:
    """Return the bytes of the reward models that each process loads; 0 where a config cannot be had."""
    size = 0.0
    for choice in () if stage.rollout is None else stage.rollout.rewards:
        if choice.type != "reward_model":
            continue
        number = 4 if choice.settings.get("dtype", "float32") == "float32" else 2
        try:
            home = config_directory(str(choice.settings.get("path", "")), choice.settings.get("revision"))
            size += number * shape_of_directory(home).params
        except (
            Exception
        ):  # of whichever HTTP library the hub's client uses, or of no config: it is listed as not counted
            return 0.0
    return size


def _device(here: Hardware) -> Device:
    """Return the device, with its speed where the table has it."""
    known = gpus.find(here.name, here.memory) if here.accelerator == "cuda" else None
    return replace(known, memory=float(here.memory)) if known else Device(here.name, float(here.memory))


def _counted(known: ResolvedStage, here: Hardware, estimate: StageEstimate) -> Mapping[str, dict[str, float]]:
    """Return the bytes that a dry run counts, by phase and part.

    It holds a whole replica, so under fsdp the parts that are split are divided here. What lies outside tensors
    (CUDA's own, an engine's share) is the estimate's.
    """
    from align.core.estimation.dry_run import dry_run

    devices = here.world_size
    share = devices if estimate.strategy == "fsdp" else 1
    counted = dry_run(known.stage, known.algorithm, known.planned, here.accelerator, devices, known.layout).phases
    phases: dict[str, dict[str, float]] = {}
    for phase, parts in counted.items():
        in_tensors = {name: size / (share if name in SHARDED else 1) for name, size in parts.items()}
        others = {name: size for name, size in estimate.phases[phase].items() if name in NOT_IN_TENSORS}
        phases[phase] = in_tensors | others
    return phases


def _calibrated(
    known: ResolvedStage,
    here: Hardware,
    request: EstimateRequest,
    before: StageEstimate,
    prices: Mapping[str, float] | None,
    currency: str,
) -> StageEstimate:
    """Return the estimate corrected by real steps on this machine."""
    from align.core.estimation.calibrate import calibrate

    local = present(known.stage.devices)
    if any(source.path.startswith("rows of ") for source in known.stage.data.train):
        raise AlignError(
            "learns from rows that are not there yet", "calibrate it once they are", where=known.stage.name
        )
    seen = calibrate(known.stage, local)
    there = estimate_stage(
        replace(
            request,
            batches=seen.planned.batches,
            device=_device(local),
            devices=1,
            nodes=1,
            accelerator=local.accelerator,
        )
    )
    phase = "training" if "training" in seen.peaks else "generation"
    parts = there.phases[phase]
    # States are known exactly; what a calibration corrects is the share of the peak that depends on kernels.
    loose = sum(parts.get(name, 0.0) for name in ("activations", "logits"))
    guessed = sum(parts.values()) - parts.get("base", 0.0)  # which no allocator sees
    factor = max(0.1, (seen.peaks[phase] - (guessed - loose)) / loose) if loose else 1.0
    after = estimate_stage(request, prices, currency, factor)
    measured = {"peak": float(seen.peaks[phase]), "estimated": guessed, "factor": factor, "step_seconds": seen.seconds}
    if request.batches.steps and here.accelerator == local.accelerator:
        measured["hours"] = seen.seconds * request.batches.steps / here.world_size / 3600
    return replace(after, counted=before.counted, measured=measured)
