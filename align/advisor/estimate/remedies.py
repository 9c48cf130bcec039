"""A request for an estimate, its memory under align's engine, and the settings that would reduce it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from align.advisor.estimate import engine_memory
from align.advisor.estimate.engine_memory import Parts
from align.advisor.estimate.memory_plans import judge
from align.advisor.estimate.model_shape import ModelShape
from align.schemas.advice import Fit
from align.schemas.engine import PLANNED_SHARE, Batches, Micro, Needs, activation_bytes
from align.schemas.gpus import Device
from align.schemas.hardware import Footprint, Hardware, Placement
from align.schemas.run import Adapter, Choice, Stage

REMEDIES: tuple[tuple[str, str], ...] = (
    ("micro", "train.micro_batch_size=1"),
    ("checkpointing", "model.gradient_checkpointing=true"),
    ("answers", "rollout.generator.batch_tokens=8192"),
    ("fsdp", "devices.strategy=fsdp"),
    ("layers", "rollout.generator.gather=layers"),
    ("lora", "model.adapter.r=16"),
    ("16bit", "model.dtype=bfloat16"),
    ("qlora", "model.adapter.quantize=nf4"),
    ("half", "data.max_length={half}"),
)
"""Settings that save memory, by cost: first those that cost time only, then those that change the training."""


COSTS = {
    "train.micro_batch_size": "slower, with the same result",
    "model.gradient_checkpointing": "about a third more time, with the same result",
    "rollout.generator.batch_tokens": "slower sampling, of the same completions",
    "devices.strategy": "more traffic between devices, with the same result",
    "rollout.generator.gather": "much slower sampling: each token gathers all layers",
    "model.adapter.r": "trains an adapter in place of all weights",
    "model.dtype": "the frozen base is rounded to 16 bits",
    "model.adapter.quantize": "the frozen base is rounded to 4 bits",
    "data.max_length": "longer rows are cut or left out",
}
"""The price of each remedy, by its setting."""


def built_in_placement(stage: Stage, hardware: Hardware, size: Footprint) -> Placement:
    """Return the strategy that the run file names, or that align's own ``auto`` takes; nothing is refused."""
    declared = stage.devices.strategy.type
    name = size.choice(hardware) if declared == "auto" or hardware.world_size == 1 else declared
    return Placement(name, size.explain(name, hardware, "auto" if declared == "auto" else "run file"))


@dataclass(frozen=True, slots=True)
class EstimateRequest:
    """The inputs of an estimate. accelerator: ``cpu`` or ``cuda``; ``devices`` of type ``device`` share each step.

    nodes: machines that they are in. place: what training would decide about a stage, by plugins and checks too.
    rewards: bytes of reward models, which each process loads.
    """

    stage: Stage
    needs: Needs
    shape: ModelShape
    batches: Batches
    device: Device
    devices: int
    accelerator: str
    nodes: int = 1
    place: Callable[[Stage, Hardware, Footprint], Placement] = built_in_placement
    rewards: float = 0.0


def fullest(phases: Mapping[str, Parts]) -> Parts:
    """Return the phase that needs most memory."""
    return max(phases.values(), key=lambda parts: sum(parts.values()), default={})


def phases_of(request: EstimateRequest, stage: Stage | None = None, name: str | None = None) -> dict[str, Parts]:
    """Return the memory of each phase under align's engine. name: ``ddp`` or ``fsdp``; None: the run file's."""
    stage = stage or request.stage
    how = engine_memory.layout_of(stage, request.accelerator, request.devices, name, request.nodes)
    phases = engine_memory.stage_memory(stage, request.needs, request.shape, how, request.batches)
    if request.accelerator == "cuda" and request.stage.rollout is not None:
        generator = request.stage.rollout.generator
        if generator.type == "vllm" and generator.settings.get("mode", "process") == "process":
            share = float(generator.settings.get("gpu_memory_utilization", 0.3)) * request.device.memory
            phases = {phase: {**parts, "vllm": share} for phase, parts in phases.items()}
            phases["generation"].pop("kv_cache", None)
    if how.split and "generation" in phases and _samples_locally(stage):
        phases["generation"] = _gathering(request, stage, how, phases["generation"])
    if request.rewards:
        phases = {phase: {**parts, "reward": request.rewards} for phase, parts in phases.items()}
    return phases


def _samples_locally(stage: Stage) -> bool:
    return stage.rollout is not None and stage.rollout.generator.type == "local"


def _gathering(request: EstimateRequest, stage: Stage, how: engine_memory.MemoryLayout, parts: Parts) -> Parts:
    """Return the memory of sampling from weights that are split: gathered whole, or layer by layer (``gather``)."""
    assert stage.rollout is not None
    gather = stage.rollout.generator.settings.get("gather", "auto")
    whole = {**parts, "gathered": engine_memory.whole_copy(request.shape, how)}
    fits = sum(whole.values()) <= PLANNED_SHARE * request.device.memory
    return whole if gather == "whole" or (gather == "auto" and fits) else parts


def placement_of(request: EstimateRequest, stage: Stage | None = None) -> Placement:
    """Return what training would decide about a stage, by default the request's own."""
    stage = stage or request.stage
    return request.place(stage, _hardware(request), replica_of(request, stage))


def strategy_of(request: EstimateRequest) -> str:
    """Return the strategy that training would take."""
    return placement_of(request).strategy


def replica_of(request: EstimateRequest, stage: Stage) -> Footprint:
    """Return what one unsharded replica of a stage needs, by the formulas that training chooses by."""
    needs, shape = request.needs, request.shape
    how = engine_memory.layout_of(stage, request.accelerator, request.devices, "ddp")
    states = engine_memory.footprint(needs, shape, how)
    reference = engine_memory.networks(stage, needs, shape, how).get("reference", 0.0)
    tokens = max((micro.tokens for micro in request.batches.micros), default=0)
    number = how.kind.compute
    kept = activation_bytes(tokens, shape.hidden, shape.layers, stage.model.gradient_checkpointing, number)
    return Footprint(round(states + reference), round(kept))


def _hardware(request: EstimateRequest) -> Hardware:
    accelerator: Literal["cpu", "cuda"] = "cpu" if request.accelerator == "cpu" else "cuda"
    each, nodes = request.devices // request.nodes, request.nodes
    return Hardware(accelerator, each, nodes, round(request.device.memory), name=request.device.name)


def with_strategy(stage: Stage, name: str) -> Stage:
    """Return a stage that names its strategy."""
    return stage.model_copy(update={"devices": stage.devices.model_copy(update={"strategy": Choice(type=name)})})


def scaled(parts: Parts, factor: float) -> Parts:
    """Scale the components that depend on the batch."""
    return {name: size * factor if name in ("activations", "logits") else size for name, size in parts.items()}


def remedies_for(request: EstimateRequest, factor: float) -> Iterator[tuple[str, Fit]]:
    """Yield settings that help, the cheapest first, each on top of those before, until it fits and training accepts it.

    A setting under which training would refuse the stage is skipped, unless it is refused as it is.
    """
    own = placement_of(request)
    refused, before = own.refused, float("inf")
    parts = scaled(fullest(phases_of(request, name=own.strategy)), factor)
    fits = judge(own.strategy, parts, request.device.memory).verdict == "fits"
    for kind, setting in REMEDIES:
        turned = _turned(kind, request)
        if turned is None:
            continue
        placed = placement_of(turned)
        name, still = placed.strategy, placed.refused
        fit = judge(name, scaled(fullest(phases_of(turned, turned.stage, name)), factor), request.device.memory)
        allows = bool(refused) and not still
        helps = allows or (fit.total_gb < 0.99 * before and not fits)  # less than 1% is not worth a setting
        if (still and not refused) or not helps:
            continue
        request, refused, before, fits = turned, still, fit.total_gb, fit.verdict == "fits"
        yield setting.format(half=request.stage.data.max_length), fit
        if fits and not refused:
            return


def _turned(kind: str, request: EstimateRequest) -> EstimateRequest | None:
    """Return the same plan with one setting changed; None where it is so already, or has no meaning here."""
    stage, batches, cuda = request.stage, request.batches, request.accelerator == "cuda"
    model, rollout, name = stage.model, stage.rollout, strategy_of(request)

    def with_stage(**changes: Any) -> EstimateRequest:
        return replace(request, stage=stage.model_copy(update=changes))

    def with_model(**changes: Any) -> EstimateRequest:
        return with_stage(model=model.model_copy(update=changes))

    local = rollout is not None and rollout.generator.type == "local"
    match kind:
        case "checkpointing" if not model.gradient_checkpointing:
            return with_model(gradient_checkpointing=True)
        case "micro" if batches.micros and max(m.rows for m in batches.micros) > request.needs.sequences:
            singles = _singles(batches.micros, request.needs.sequences)
            return replace(request, batches=replace(batches, micros=singles, ranks=()))
        case "answers" if local and batches.answers * (batches.prompt + batches.answer) > 8192:
            few = max(1, 8192 // (batches.prompt + batches.answer))
            prompts = min(batches.prompts, few)
            return replace(request, batches=replace(batches, answers=few, prompts=prompts))
        case "fsdp" if request.devices > 1 and name != "fsdp":
            return replace(request, stage=with_strategy(stage, "fsdp"))
        case "layers" if local and name == "fsdp" and rollout is not None:
            settings = {**rollout.generator.settings, "gather": "layers"}
            if settings == rollout.generator.settings:
                return None
            generator = rollout.generator.model_copy(update={"settings": settings})
            return with_stage(rollout=rollout.model_copy(update={"generator": generator}))
        case "lora" if model.adapter is None:
            return with_model(adapter=Adapter())
        case "16bit" if model.dtype == "float32" and model.adapter is not None and cuda:
            return with_model(dtype="bfloat16")
        case "qlora" if model.adapter is not None and model.adapter.quantize is None and cuda:
            return with_model(adapter=model.adapter.model_copy(update={"quantize": "nf4"}))
        case "half" if batches.micros and not request.needs.online:
            half = max(1, stage.data.max_length // 2)
            short = tuple(
                replace(m, width=min(m.width, half), scored=min(m.scored, m.rows * half)) for m in batches.micros
            )
            shorter = with_stage(data=stage.data.model_copy(update={"max_length": half}))
            return replace(shorter, batches=replace(batches, micros=short, ranks=()))
    return None


def _singles(micros: tuple[Micro, ...], sequences: int) -> tuple[Micro, ...]:
    """Return micro-batches of one example each."""
    widest = max(micros, key=lambda micro: micro.width)
    scored = -(-widest.scored * sequences // widest.rows)
    one = Micro(sequences, widest.width, scored, widest.padded and sequences > 1)
    return (one, one)
