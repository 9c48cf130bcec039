"""A request for an estimate, its memory under align's engine, and the settings that would reduce it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from align.advisor.estimate import engine_memory
from align.advisor.estimate.engine_memory import Parts
from align.advisor.estimate.memory_plans import judge
from align.advisor.estimate.model_shape import ModelShape
from align.schemas.advice import Fit
from align.schemas.engine import Batches, Micro, Needs, activation_bytes
from align.schemas.gpus import Device
from align.schemas.hardware import Footprint, Hardware
from align.schemas.run import Adapter, Choice, Stage

REMEDIES: tuple[tuple[str, str], ...] = (
    ("micro", "train.micro_batch_size=1"),
    ("checkpointing", "model.gradient_checkpointing=true"),
    ("answers", "rollout.generator.batch_tokens=8192"),
    ("fsdp", "devices.strategy=fsdp"),
    ("vllm", "rollout.generator=vllm"),
    ("lora", "model.adapter.r=16"),
    ("16bit", "model.dtype=bfloat16"),
    ("qlora", "model.adapter.quantize=nf4"),
    ("half", "data.max_length={half}"),
)
"""Settings that save memory, by cost: first those that cost time only, then those that change the training."""


@dataclass(frozen=True, slots=True)
class EstimateRequest:
    """The inputs of an estimate. accelerator: ``cpu`` or ``cuda``; ``devices`` of type ``device`` share each step."""

    stage: Stage
    needs: Needs
    shape: ModelShape
    batches: Batches
    device: Device
    devices: int
    accelerator: str
    ram: float | None = None


def fullest(phases: Mapping[str, Parts]) -> Parts:
    """Return the phase that needs most memory."""
    return max(phases.values(), key=lambda parts: sum(parts.values()), default={})


def phases_of(request: EstimateRequest, stage: Stage | None = None, name: str | None = None) -> dict[str, Parts]:
    """Return the memory of each phase under align's engine. name: ``ddp`` or ``fsdp``; None: the run file's."""
    stage = stage or request.stage
    how = engine_memory.layout_of(stage, request.accelerator, request.devices, name)
    phases = engine_memory.stage_memory(stage, request.needs, request.shape, how, request.batches)
    if request.accelerator == "cuda" and request.stage.rollout is not None:
        generator = request.stage.rollout.generator
        if generator.type == "vllm" and generator.settings.get("mode", "process") == "process":
            share = float(generator.settings.get("gpu_memory_utilization", 0.3)) * request.device.memory
            phases = {phase: {**parts, "vllm": share} for phase, parts in phases.items()}
            phases["generation"].pop("kv_cache", None)
    return phases


def strategy_of(request: EstimateRequest) -> str:
    """Return the strategy that ``auto`` selects: single on one device, else ddp where a replica fits, else fsdp."""
    name = request.stage.devices.strategy.type
    if request.devices == 1:
        return "single"
    return replica_of(request).choice(_hardware(request)) if name == "auto" else name


def placement_of(request: EstimateRequest) -> str:
    """Return the sentence that a run of this stage begins with: its strategy, and why (``Footprint.explain``)."""
    chosen: Literal["auto", "run file"] = "auto" if request.stage.devices.strategy.type == "auto" else "run file"
    return replica_of(request).explain(strategy_of(request), _hardware(request), chosen)


def replica_of(request: EstimateRequest) -> Footprint:
    """Return what one unsharded replica needs, by the formulas that training chooses by."""
    stage, needs, shape = request.stage, request.needs, request.shape
    how = engine_memory.layout_of(stage, request.accelerator, request.devices, "ddp")
    states = engine_memory.footprint(needs, shape, how)
    reference = engine_memory.networks(stage, needs, shape, how).get("reference", 0.0)
    tokens = max((micro.tokens for micro in request.batches.micros), default=0)
    number = how.kind.compute
    kept = activation_bytes(tokens, shape.hidden, shape.layers, stage.model.gradient_checkpointing, number)
    return Footprint(round(states + reference), round(kept))


def _hardware(request: EstimateRequest) -> Hardware:
    accelerator: Literal["cpu", "cuda"] = "cpu" if request.accelerator == "cpu" else "cuda"
    return Hardware(accelerator, request.devices, 1, round(request.device.memory), name=request.device.name)


def refusal(request: EstimateRequest, stage: Stage, name: str) -> str:
    """Return why training would refuse a stage under a strategy, whatever the memory; empty where it would not."""
    adapter, rollout = stage.model.adapter, stage.rollout
    quantised = adapter is not None and adapter.quantize is not None
    if request.devices > 1 and name == "single":
        return f"devices.strategy is single, and there are {request.devices} devices"
    if quantised and request.accelerator == "cpu":
        return "model.adapter.quantize needs a GPU"
    if request.devices > 1 and name == "fsdp" and quantised:
        return "fsdp cannot split a quantised base"
    if request.devices > 1 and name == "fsdp" and rollout is not None and rollout.generator.type == "local":
        return "the generator local cannot sample from weights that fsdp splits"
    return ""


def scaled(parts: Parts, factor: float) -> Parts:
    """Scale the components that depend on the batch."""
    return {name: size * factor if name in ("activations", "logits") else size for name, size in parts.items()}


def remedies_for(request: EstimateRequest, factor: float) -> Iterator[tuple[str, Fit]]:
    """Yield settings that help, the cheapest first, each on top of those before, until it fits and training accepts it.

    A setting under which training would refuse the stage is skipped, unless it is refused as it is.
    """
    own = strategy_of(request)
    refused, before = refusal(request, request.stage, own), float("inf")
    fits = judge(own, scaled(fullest(phases_of(request)), factor), request.device.memory).verdict == "fits"
    for kind, setting in REMEDIES:
        turned = _turned(kind, request)
        if turned is None:
            continue
        name = strategy_of(turned)
        still = refusal(turned, turned.stage, name)
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
            return replace(request, batches=replace(batches, micros=_singles(batches.micros, request.needs.sequences)))
        case "answers" if local and batches.answers * (batches.prompt + batches.answer) > 8192:
            few = max(1, 8192 // (batches.prompt + batches.answer))
            prompts = min(batches.prompts, few)
            return replace(request, batches=replace(batches, answers=few, prompts=prompts))
        case "fsdp" if request.devices > 1 and name != "fsdp":
            return with_stage(devices=stage.devices.model_copy(update={"strategy": Choice(type="fsdp")}))
        case "vllm" if local and cuda and refusal(request, stage, name) and rollout is not None:
            # The settings of ``local`` are no settings of ``vllm``: it starts from its own defaults.
            generator = rollout.generator.model_copy(update={"type": "vllm", "settings": {}})
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
            return replace(shorter, batches=replace(batches, micros=short))
    return None


def _singles(micros: tuple[Micro, ...], sequences: int) -> tuple[Micro, ...]:
    """Return micro-batches of one example each."""
    widest = max(micros, key=lambda micro: micro.width)
    scored = -(-widest.scored * sequences // widest.rows)
    one = Micro(sequences, widest.width, scored, widest.padded and sequences > 1)
    return (one, one)
