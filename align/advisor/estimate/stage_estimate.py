"""The estimate of a stage: memory by phase, verdict, other memory plans, remedies, and time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from align.advisor.estimate import engine_memory, training_cost
from align.advisor.estimate.engine_memory import Parts
from align.advisor.estimate.memory_plans import judge
from align.advisor.estimate.model_shape import ModelShape
from align.advisor.estimate.remedies import (
    EstimateRequest,
    fullest,
    phases_of,
    placement_of,
    remedies_for,
    scaled,
    with_strategy,
)
from align.advisor.estimate.training_cost import Load
from align.schemas.advice import Assumption, Estimate, Fit
from align.schemas.gpus import Device
from align.schemas.run import Adapter, Choice

FSDP_SETTINGS: Mapping[str, dict[str, Any]] = {"zero2": {"reshard_after_forward": False}, "offload": {"offload": True}}
"""Settings of ``fsdp`` that are compared, by the end of the plan's name."""


@dataclass(frozen=True, slots=True)
class RankMemory:
    """The memory of one process.

    phases: bytes of each phase at its fullest instant. host: bytes of the host's memory: states that are offloaded, and
    for rank 0 a checkpoint that is gathered.
    """

    rank: int
    phases: Mapping[str, float]
    host: float = 0.0


@dataclass(frozen=True, slots=True)
class StageEstimate:
    """The memory and time of a stage on the device of the fullest rank, and on those of the others.

    phases: bytes by component of ``training`` and ``generation``, each at its fullest instant. fit: of the fuller one.
    plans: other memory plans, with a note on those that align does not have. remedies: settings, each on top of those
    before it, and the fit with them. counted: the dry run's phases; measured: a calibration's.
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
    plans: list[Fit]
    remedies: list[tuple[str, Fit]]
    work: Estimate | None
    assumptions: list[Assumption]
    why: str = ""
    """The sentence that says which strategy training takes, and why; empty where it refuses the stage."""
    ranks: Sequence[RankMemory] = ()
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
        """Return plain values; bytes as whole numbers."""
        return {
            "stage": self.name,
            "algorithm": self.algorithm,
            "parameters": self.shape.params,
            "device": self.device,
            "devices": self.devices,
            "capacity": round(self.capacity),
            "strategy": self.strategy,
            "why": self.why or None,
            "verdict": self.fit.verdict,
            "refused": self.refused or None,
            "phases": _whole(self.phases),
            "totals": {phase: round(sum(parts.values())) for phase, parts in self.phases.items()},
            "ranks": [
                {"rank": each.rank, **{k: round(v) for k, v in each.phases.items()}, "host": round(each.host)}
                for each in self.ranks
            ],
            "plans": [plan.model_dump() for plan in self.plans],
            "remedies": [{"set": name, **fit.model_dump(exclude={"knob", "strategy"})} for name, fit in self.remedies],
            "work": None if self.work is None else self.work.model_dump(),
            "unknown": self.unknown or None,
            "assumptions": [each.model_dump() for each in self.assumptions],
            "dry_run": None if self.counted is None else _whole(self.counted),
            "calibration": dict(self.measured) or None,
        }


def _whole(phases: Mapping[str, Parts]) -> dict[str, dict[str, int]]:
    return {phase: {name: round(size) for name, size in parts.items()} for phase, parts in phases.items()}


def estimate_stage(
    request: EstimateRequest, prices: Mapping[str, float] | None = None, currency: str = "", factor: float = 1.0
) -> StageEstimate:
    """Return the estimate of a stage. factor: a calibration's, of activations and logits (measured / estimated)."""
    stage, capacity = request.stage, request.device.memory
    placement = placement_of(request)
    name, refused = placement.strategy, placement.refused
    phases = {phase: scaled(parts, factor) for phase, parts in phases_of(request, name=name).items()}
    fit = judge(name, fullest(phases), capacity)
    remedies = [] if fit.verdict == "fits" and not refused else list(remedies_for(request, factor))
    load = load_of(request)
    tuning = "full" if stage.model.adapter is None else "qlora" if stage.model.adapter.quantize else "lora"
    spent, unknown = None, request.batches.unknown
    if load is not None:
        device = _at_work(request)
        missing = training_cost.lacking(device, load)
        unknown = f"the {missing} of {device.name} is not known: --calibrate times real steps on it" if missing else ""
        spent = training_cost.estimate(
            request.shape,
            load,
            tuning,  # type: ignore[arg-type]
            device,
            request.devices,
            prices,
            currency,
            stage.model.gradient_checkpointing,
        )
    return StageEstimate(
        name=stage.name,
        algorithm=stage.algorithm.type,
        shape=request.shape,
        device=request.device.name,
        devices=request.devices,
        capacity=capacity,
        strategy=name,
        phases=phases,
        fit=fit,
        plans=list(_plans(request, factor)),
        remedies=remedies,
        work=spent,
        assumptions=list(_assumptions(request)),
        why=placement.why,
        ranks=list(_ranks(request, name, factor)),
        refused=refused,
        unknown=unknown,
    )


def _ranks(request: EstimateRequest, name: str, factor: float) -> Iterator[RankMemory]:
    """Yield the memory of each process: states are the same on all, micro-batches are not."""
    how = engine_memory.layout_of(request.stage, request.accelerator, request.devices, name, request.nodes)
    sharded = request.stage.devices.strategy.settings.get("checkpoints") == "sharded"
    gathers = how.split and request.needs.learns and not sharded
    offloaded = engine_memory.offloaded(request.stage, request.needs, request.shape, how)
    host = engine_memory.gathered_state(request.needs, request.shape, how) if gathers else 0.0
    totals: dict[object, dict[str, float]] = {}
    for rank in range(request.devices):
        micros = request.batches.ranks[rank] if request.batches.ranks else request.batches.micros
        if micros not in totals:
            own = replace(request, batches=replace(request.batches, micros=micros))
            found = phases_of(own, name=name)
            totals[micros] = {phase: sum(scaled(parts, factor).values()) for phase, parts in found.items()}
        yield RankMemory(rank, totals[micros], offloaded + (0.0 if rank else host))


def _at_work(request: EstimateRequest) -> Device:
    """Return the device with the peak of the type that the stage computes in."""
    whole = request.stage.train.precision == "32-true" and request.stage.model.dtype == "float32"
    return replace(request.device, peak=request.device.fp32) if whole else request.device


def _plans(request: EstimateRequest, factor: float) -> Iterator[Fit]:
    """Yield the fit of full weights, an adapter and a 4-bit base, under ddp and fsdp, in full with its settings too."""
    model, capacity = request.stage.model, request.device.memory
    refused = placement_of(request).refused
    adapter = model.adapter or Adapter()
    tunings = {
        "full": None,
        "lora": adapter.model_copy(update={"quantize": None}),
        "qlora": adapter.model_copy(update={"quantize": "nf4"}),
    }
    for tuning, own in tunings.items():
        if own is not None and own.quantize and request.accelerator == "cpu":
            continue  # its kernels need a GPU
        stage = request.stage.model_copy(update={"model": model.model_copy(update={"adapter": own})})
        for name in ("single",) if request.devices == 1 else ("ddp", "fsdp"):
            obstacle = placement_of(request, with_strategy(stage, name)).refused
            if obstacle and obstacle != refused:  # one that all plans share says nothing about this one
                continue
            parts = scaled(fullest(phases_of(request, stage, name)), factor)
            yield judge(f"{tuning}-{name}", parts, capacity)
            if tuning == "full" and name == "fsdp":
                for kind, settings in FSDP_SETTINGS.items():
                    strategy = Choice(type="fsdp", settings=settings)
                    devices = stage.devices.model_copy(update={"strategy": strategy})
                    changed = stage.model_copy(update={"devices": devices})
                    parts = scaled(fullest(phases_of(request, changed, name)), factor)
                    yield judge(f"full-fsdp-{kind}", parts, capacity)


def load_of(request: EstimateRequest) -> Load | None:
    """Return the tokens that a stage processes; None where neither data nor settings determine them."""
    stage, needs, batches = request.stage, request.needs, request.batches
    if needs.online and stage.rollout is not None:
        if batches.steps is None:
            return None
        phases = batches.steps / (stage.rollout.batches * needs.passes)
        answers = phases * stage.train.batch_size * stage.rollout.batches
        through = answers * (batches.prompt + batches.answer)
        learned = through * needs.passes if needs.learns else 0.0
        made = answers * batches.answer
        context = batches.prompt + batches.answer / 2
        ahead = bool(stage.rollout.max_staleness)
        return Load(learned, needs.passes_read * through, made, context, int(needs.critic), ahead)
    if batches.steps is None:
        return None
    if batches.tokens is not None and batches.rows:
        tokens = batches.steps * stage.train.batch_size * batches.tokens / batches.rows
    else:
        tokens = float(batches.steps * stage.train.batch_size * stage.data.max_length * needs.sequences)
    once = tokens / max(1.0, stage.train.num_train_epochs) if needs.ahead else tokens
    return Load(tokens, needs.passes_read * once)


def _assumptions(request: EstimateRequest) -> Iterator[Assumption]:
    batches, stage = request.batches, request.stage
    if not batches.measured:
        yield Assumption(fact=f"lengths: {batches.source}", why="not measured", effect="an upper bound of memory")
    if request.needs.online:
        yield Assumption(
            fact=f"answers are {batches.answer} tokens long",
            why="rollout.sampling.max_completion_length",
            effect="an upper bound of memory and time",
        )
    if not request.shape.exact:
        size = f"a typical shape of {request.shape.params / 1e9:.3g}B parameters"
        yield Assumption(fact=size, why="no config.json to read", effect="memory may differ by 15 %")
    scored = stage.rollout is not None and any(reward.type == "reward_model" for reward in stage.rollout.rewards)
    if scored and not request.rewards:
        yield Assumption(
            fact="the reward model is not counted",
            why="its config.json cannot be had",
            effect="the bytes of its weights more on each device",
        )
    if stage.train.batch_size < request.devices:
        yield Assumption(
            fact=f"{request.devices - stage.train.batch_size} of {request.devices} devices have no row in a step",
            why=f"train.batch_size is {stage.train.batch_size}",
            effect="they only wait for the others",
        )
    if request.accelerator == "cuda":
        yield Assumption(
            fact="1 GB for CUDA, NCCL and fragmentation", why="0.8 to 1.5 GB are seen", effect="--calibrate measures it"
        )
