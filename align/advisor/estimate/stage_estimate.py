"""A stage's estimate, whole: phases, verdict, other ways of holding it, what would help, and how long it takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from align.advisor.estimate import training_cost
from align.advisor.estimate.engine_memory import Parts
from align.advisor.estimate.memory_plans import judge
from align.advisor.estimate.model_shape import ModelShape
from align.advisor.estimate.remedies import (
    EstimateRequest,
    fullest,
    phases_of,
    refusal,
    remedies_for,
    scaled,
    strategy_of,
)
from align.advisor.estimate.training_cost import Load
from align.schemas.advice import Assumption, Estimate, Fit
from align.schemas.gpus import Device
from align.schemas.run import Adapter


@dataclass(frozen=True, slots=True)
class StageEstimate:
    """What a stage takes on one device.

    phases: bytes by component of ``training`` and ``generation``, each at its fullest instant. fit: of the fuller one.
    ways: other ways of holding it, those not align's own named so. knobs: settings, each laid over those before it, and
    what then is taken. counted: the dry run's phases; measured: a calibration's.
    """

    name: str
    algorithm: str
    shape: ModelShape
    device: str
    devices: int
    capacity: float
    strategy: str
    phases: Mapping[str, Parts]
    fit: Fit
    ways: list[Fit]
    knobs: list[tuple[str, Fit]]
    work: Estimate | None
    assumptions: list[Assumption]
    refused: str = ""
    """The reason why training would refuse it, whatever the memory; empty where it would not."""
    unknown: str = ""
    """The reason why the time is not known; empty where it is."""
    counted: Mapping[str, Parts] | None = None
    measured: Mapping[str, float] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        """Return whether it can be launched: it fits, if tightly, and training does not refuse it."""
        return self.fit.verdict != "does_not_fit" and not self.refused

    def as_json(self) -> dict[str, Any]:
        """Plain values; bytes as whole numbers."""
        return {
            "stage": self.name,
            "algorithm": self.algorithm,
            "parameters": self.shape.params,
            "device": self.device,
            "devices": self.devices,
            "capacity": round(self.capacity),
            "strategy": self.strategy,
            "verdict": self.fit.verdict,
            "refused": self.refused or None,
            "phases": _whole(self.phases),
            "totals": {phase: round(sum(parts.values())) for phase, parts in self.phases.items()},
            "ways": [way.model_dump() for way in self.ways],
            "knobs": [{"set": name, **fit.model_dump(exclude={"knob", "strategy"})} for name, fit in self.knobs],
            "work": None if self.work is None else self.work.model_dump(),
            "unknown": self.unknown or None,
            "assumptions": [each.model_dump() for each in self.assumptions],
            "dry_run": None if self.counted is None else _whole(self.counted),
            "calibration": dict(self.measured) or None,
        }


def _whole(phases: Mapping[str, Parts]) -> dict[str, dict[str, int]]:
    return {phase: {name: round(size) for name, size in parts.items()} for phase, parts in phases.items()}


def estimate_stage(
    asked: EstimateRequest, prices: Mapping[str, float] | None = None, currency: str = "", factor: float = 1.0
) -> StageEstimate:
    """All of it. factor: what a calibration found for activations and logits (measured / estimated)."""
    stage, capacity = asked.stage, asked.device.memory
    name = strategy_of(asked)
    phases = {phase: scaled(parts, factor) for phase, parts in phases_of(asked, name=name).items()}
    fit = judge(name, fullest(phases), capacity)
    refused = refusal(asked, stage, name)
    knobs = [] if fit.verdict == "fits" and not refused else list(remedies_for(asked, factor))
    load = load_of(asked)
    tuning = "full" if stage.model.adapter is None else "qlora" if stage.model.adapter.quantize else "lora"
    spent, unknown = None, asked.batches.unknown
    if load is not None:
        device = _at_work(asked)
        missing = training_cost.lacking(device, load)
        unknown = f"the {missing} of {device.name} is not known: --calibrate times real steps on it" if missing else ""
        spent = training_cost.estimate(
            asked.shape,
            load,
            tuning,  # type: ignore[arg-type]
            device,
            asked.devices,
            prices,
            currency,
            stage.model.gradient_checkpointing,
        )
    return StageEstimate(
        name=stage.name,
        algorithm=stage.algorithm.type,
        shape=asked.shape,
        device=asked.device.name,
        devices=asked.devices,
        capacity=capacity,
        strategy=name,
        phases=phases,
        fit=fit,
        ways=list(_ways(asked, factor)),
        knobs=knobs,
        work=spent,
        assumptions=list(_assumptions(asked)),
        refused=refused,
        unknown=unknown,
    )


def _at_work(asked: EstimateRequest) -> Device:
    """The device with the peak of the type that the stage computes in."""
    whole = asked.stage.train.precision == "32-true" and asked.stage.model.dtype == "float32"
    return replace(asked.device, peak=asked.device.fp32) if whole else asked.device


def _ways(asked: EstimateRequest, factor: float) -> Iterator[Fit]:
    """Everything, an adapter, a 4-bit base; each whole, split, and (for comparison) under DeepSpeed's stages."""
    model, capacity = asked.stage.model, asked.device.memory
    adapter = model.adapter or Adapter()
    tunings = {
        "full": None,
        "lora": adapter.model_copy(update={"quantize": None}),
        "qlora": adapter.model_copy(update={"quantize": "nf4"}),
    }
    for tuning, own in tunings.items():
        if own is not None and own.quantize and asked.accelerator == "cpu":
            continue  # its kernels need a GPU
        stage = asked.stage.model_copy(update={"model": model.model_copy(update={"adapter": own})})
        for name in ("single",) if asked.devices == 1 else ("ddp", "fsdp"):
            if refusal(asked, stage, name):
                continue
            parts = scaled(fullest(phases_of(asked, stage, name)), factor)
            yield judge(f"{tuning}-{name}", parts, capacity)
            if tuning == "full" and name == "ddp":
                yield judge("full-deepspeed-zero2 (not align's)", _zero2(parts, asked.devices), capacity)
            if tuning == "full" and name == "fsdp":
                yield judge("full-deepspeed-zero3 (not align's)", parts, capacity)


def _zero2(parts: Parts, devices: int) -> Parts:
    """Replicated weights, gradients and moments split."""
    once = {"gradients": parts.get("gradients", 0.0) / 2}  # no buckets beside them
    return {**parts, **once, "optimizer": parts.get("optimizer", 0.0) / devices}


def load_of(asked: EstimateRequest) -> Load | None:
    """The tokens that a stage has to get through; None where neither data nor settings tell."""
    stage, needs, batches = asked.stage, asked.needs, asked.batches
    if needs.online and stage.rollout is not None:
        if batches.steps is None:
            return None
        phases = batches.steps / (stage.rollout.batches * needs.passes)
        answers = phases * stage.train.batch_size * stage.rollout.batches
        through = answers * (batches.prompt + batches.answer)
        learned = through * needs.passes if needs.learns else 0.0
        made = answers * batches.answer
        return Load(learned, needs.passes_read * through, made, batches.prompt + batches.answer / 2, int(needs.critic))
    if batches.steps is None:
        return None
    if batches.tokens is not None and batches.rows:
        tokens = batches.steps * stage.train.batch_size * batches.tokens / batches.rows
    else:
        tokens = float(batches.steps * stage.train.batch_size * stage.data.max_length * needs.sequences)
    once = tokens / max(1.0, stage.train.num_train_epochs) if needs.ahead else tokens
    return Load(tokens, needs.passes_read * once)


def _assumptions(asked: EstimateRequest) -> Iterator[Assumption]:
    batches, stage = asked.batches, asked.stage
    if not batches.measured:
        yield Assumption(fact=f"lengths: {batches.source}", why="not measured", effect="an upper bound of memory")
    if asked.needs.online:
        yield Assumption(
            fact=f"answers are {batches.answer} tokens long",
            why="rollout.sampling.max_completion_length",
            effect="an upper bound of memory and time",
        )
    if not asked.shape.exact:
        size = f"a typical shape of {asked.shape.params / 1e9:.3g}B parameters"
        yield Assumption(fact=size, why="no config.json can be had", effect="memory +-15%")
    if stage.rollout is not None and any(reward.type == "reward_model" for reward in stage.rollout.rewards):
        yield Assumption(
            fact="the reward model is not counted",
            why="it may lie on another device",
            effect="2 bytes a parameter more",
        )
    if asked.accelerator == "cuda":
        yield Assumption(
            fact="1 GB for CUDA, NCCL and fragmentation", why="0.8 to 1.5 GB are seen", effect="--calibrate measures it"
        )
