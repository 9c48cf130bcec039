"""A run's estimate: the engine's facts (core) put into the formulas (advisor)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from align.advisor.estimate.knobs import Asked
from align.advisor.estimate.report import StageEstimate, estimated
from align.advisor.estimate.shape import Shape, named_size, of_directory, typical
from align.advisor.estimate.work import read_prices
from align.api.inputs import RunLike, as_run
from align.core.estimate.here import Ready, ready
from align.core.hardware import present
from align.core.system_errors import explaining
from align.schemas import gpus
from align.schemas.errors import AlignError
from align.schemas.gpus import Device
from align.schemas.hardware import Hardware
from align.schemas.run import Run, Stage

STATES = ("weights", "optimizer", "gradients", "reference", "critic")
"""The parts that fsdp splits."""
BESIDE = ("gathered", "vllm", "base")
"""The parts that a dry run in one process cannot see."""


@dataclass(frozen=True, slots=True)
class Place:
    """The hardware to plan a run for: a device by name, how many, bytes of each. None: as this machine has it."""

    device: str | None = None
    devices: int | None = None
    memory: float | None = None


@dataclass(frozen=True, slots=True)
class RunEstimate:
    """What a run takes, stage by stage."""

    stages: Sequence[StageEstimate]

    @property
    def fits(self) -> bool:
        """Return True if every stage can be launched: it fits, if tightly, and training does not refuse it."""
        return all(stage.fits for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        """Return the same as plain data, of schema ``align.estimate/1``; bytes as whole numbers."""
        return {"schema": "align.estimate/1", "stages": [stage.as_json() for stage in self.stages]}


@explaining()
def estimate(
    run: RunLike,
    *,
    device: str | None = None,
    devices: int | None = None,
    memory_gb: float | None = None,
    dry_run: bool = False,
    calibrate: bool = False,
    prices: str | Path | None = None,
) -> RunEstimate:
    """Estimate the memory that a run takes on each device, whether it fits, what would help, and how long it takes.

    run: ``align.load(...)``, or the path of a run file. device: an accelerator by name (``"H100"``, ``"RTX 4090"``);
    None: what this machine has. devices: how many share each step. memory_gb: memory of each, in 10^9 bytes. dry_run:
    count the bytes of real steps under tensors without numbers. calibrate: run a few real steps here, and correct the
    estimate by them. prices: a YAML file of what an hour of each device costs.

    Imports torch. Raises AlignError for a run file that is wrong, and for what cannot be known or run.
    """
    if (devices is not None and devices < 1) or (memory_gb is not None and not memory_gb > 0):
        raise AlignError("devices and memory_gb are above 0", where="estimate")
    checked = as_run(run)
    per_hour, currency, _ = (None, "", "") if prices is None else read_prices(Path(prices))
    place = Place(device, devices, None if memory_gb is None else memory_gb * 1e9)
    stages = [_stage(checked, stage, place, dry_run, calibrate, per_hour, currency) for stage in checked.stages]
    return RunEstimate(stages)


def _stage(
    run: Run,
    stage: Stage,
    place: Place,
    dry: bool,
    measure: bool,
    prices: Mapping[str, float] | None,
    currency: str,
) -> StageEstimate:
    """Estimate one stage. dry: also count a dry run. measure: also run real steps, and correct by them."""
    here = where(place, present(stage.devices) if place.device is None and place.memory is None else None)
    billions = run.project.model.params_b if run.project else None
    billions = billions or named_size(stage.model.path)
    known = ready(run.stages, stage, here.accelerator, here.world_size, sized=billions is not None)
    asked = Asked(
        stage=known.stage,
        needs=known.needs,
        shape=_shape(known, billions, exactly="--dry-run" if dry else "--calibrate" if measure else None),
        batches=known.planned.batches,
        device=_device(here),
        devices=here.world_size,
        accelerator=here.accelerator,
    )
    each = estimated(asked, prices, currency)
    if dry:
        each = replace(each, counted=_counted(known, here, each))
    if measure:
        each = _measured(known, here, asked, each, prices, currency)
    return each


def _shape(known: Ready, billions: float | None, exactly: str | None) -> Shape:
    """The model's shape: its config's, else one that is typical of so many billion parameters.

    Raises AlignError where an option, ``exactly``, needs the model itself and there is none.
    """
    if known.directory is not None:
        return of_directory(known.directory)
    if exactly is not None:
        raise AlignError(
            f"{exactly} needs a model whose config.json can be had",
            f"give a directory that holds one, or leave out {exactly}: a typical shape is taken then",
            where=f"{known.stage.name}: model.path: {known.stage.model.path}",
        )
    assert billions is not None
    return typical(billions)


def where(place: Place, here: Hardware | None) -> Hardware:
    """Return the device that is meant. Raises AlignError for a name that is not listed and comes without a memory."""
    if here is not None:
        return here if place.devices is None else replace(here, devices=place.devices, nodes=1)
    name, memory = place.device or "GPU", place.memory
    if place.device is not None and (memory is None or gpus.find(place.device) is not None):
        device = gpus.named(place.device)
        name, memory = device.name, memory or device.memory
    assert memory is not None  # without a device and a memory it is this machine that is meant
    return Hardware("cuda", place.devices or 1, 1, round(memory), name=name)


def _device(here: Hardware) -> Device:
    """Return the device, with its speed where the table has it."""
    known = gpus.find(here.name, here.memory) if here.accelerator == "cuda" else None
    return replace(known, memory=float(here.memory)) if known else Device(here.name, float(here.memory))


def _counted(known: Ready, here: Hardware, estimate: StageEstimate) -> Mapping[str, dict[str, float]]:
    """The dry run's bytes. It holds a whole replica: under fsdp its states are divided here.

    What lies outside tensors (CUDA's own, an engine's share) is the estimate's.
    """
    from align.core.estimate.dryrun import dry_run

    devices = here.world_size
    share = devices if estimate.strategy == "fsdp" else 1
    counted = dry_run(known.stage, known.algorithm, known.planned, here.accelerator, devices, known.layout).phases
    return {
        phase: {name: size / (share if name in STATES else 1) for name, size in parts.items()}
        | {name: size for name, size in estimate.phases[phase].items() if name in BESIDE}
        for phase, parts in counted.items()
    }


def _measured(
    known: Ready,
    here: Hardware,
    asked: Asked,
    before: StageEstimate,
    prices: Mapping[str, float] | None,
    currency: str,
) -> StageEstimate:
    """The estimate corrected by real steps on this machine."""
    from align.core.estimate.calibrate import calibrate

    local = present(known.stage.devices)
    if any(source.path.startswith("rows of ") for source in known.stage.data.train):
        raise AlignError(
            "learns from rows that are not there yet", "calibrate it once they are", where=known.stage.name
        )
    seen = calibrate(known.stage, local)
    there = estimated(
        replace(asked, batches=seen.planned.batches, device=_device(local), devices=1, accelerator=local.accelerator)
    )
    phase = "training" if "training" in seen.peaks else "generation"
    parts = there.phases[phase]
    loose = sum(parts.get(name, 0.0) for name in ("activations", "logits"))
    guessed = sum(parts.values()) - parts.get("base", 0.0)  # which no allocator sees
    factor = max(0.1, (seen.peaks[phase] - (guessed - loose)) / loose) if loose else 1.0
    after = estimated(asked, prices, currency, factor)
    measured = {"peak": float(seen.peaks[phase]), "estimated": guessed, "factor": factor, "step_seconds": seen.seconds}
    if asked.batches.steps and here.accelerator == local.accelerator:
        measured["hours"] = seen.seconds * asked.batches.steps / here.world_size / 3600
    return replace(after, counted=before.counted, measured=measured)
