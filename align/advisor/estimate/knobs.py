"""What is asked of an estimate, what align's engine takes for it, and which settings would make it take less."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from align.advisor.estimate import engine
from align.advisor.estimate.engine import Parts
from align.advisor.estimate.hardware import Device
from align.advisor.estimate.shape import Shape
from align.advisor.estimate.strategy import judge
from align.schemas.advice import Fit
from align.schemas.estimate import Batches, Micro, Needs
from align.schemas.run import Adapter, Stage

KNOBS: tuple[tuple[str, str], ...] = (
    ("micro", "train.micro_batch_size=1"),
    ("checkpointing", "model.gradient_checkpointing=true"),
    ("answers", "rollout.generator.batch_tokens=8192"),
    ("fsdp", "devices.strategy=fsdp"),
    ("lora", "model.adapter.rank=16"),
    ("16bit", "model.dtype=bfloat16"),
    ("qlora", "model.adapter.quantize=nf4"),
    ("half", "data.max_length={half}"),
)
"""What helps, by what it costs: nothing learned differently first (time only), then what is learned."""

AUTO = 0.7
"""Share of a device's memory that a replica may take for ``auto`` to choose ddp (align.plugins.builtin)."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What an estimate is made from. accelerator: ``cpu`` or ``cuda``; device: of which ``devices`` share each step."""

    stage: Stage
    needs: Needs
    shape: Shape
    batches: Batches
    device: Device
    devices: int
    accelerator: str
    ram: float | None = None


def fullest(phases: Mapping[str, Parts]) -> Parts:
    """The phase that takes most."""
    return max(phases.values(), key=lambda parts: sum(parts.values()), default={})


def phases_of(asked: Asked, stage: Stage | None = None, name: str | None = None) -> dict[str, Parts]:
    """What align's own engine takes. name: ``ddp`` or ``fsdp``, else as the run file says."""
    stage = stage or asked.stage
    how = engine.held(stage, asked.accelerator, asked.devices, name)
    phases = engine.estimate_stage(stage, asked.needs, asked.shape, how, asked.batches)
    if asked.accelerator == "cuda" and asked.stage.rollout is not None:
        generator = asked.stage.rollout.generator
        if generator.type == "vllm" and generator.settings.get("mode", "process") == "process":
            share = float(generator.settings.get("gpu_memory_utilization", 0.3)) * asked.device.memory
            phases = {phase: {**parts, "vllm": share} for phase, parts in phases.items()}
            phases["generation"].pop("kv_cache", None)
    return phases


def strategy_of(asked: Asked) -> str:
    """What ``auto`` would take: single on one device, else ddp where a replica fits, else fsdp."""
    name = asked.stage.devices.strategy.type
    if asked.devices == 1:
        return "single"
    if name != "auto":
        return name
    how = engine.held(asked.stage, asked.accelerator, asked.devices, "ddp")
    replica = engine.footprint(asked.needs, asked.shape, how)
    return "ddp" if replica < AUTO * asked.device.memory else "fsdp"


def scaled(parts: Parts, factor: float) -> Parts:
    """What depends on the batch times a factor."""
    return {name: size * factor if name in ("activations", "logits") else size for name, size in parts.items()}


def knobs_for(asked: Asked, factor: float) -> Iterator[tuple[str, Fit]]:
    """Settings that help, the cheapest first, each on top of those before, until it fits."""
    stage, name, before = asked.stage, strategy_of(asked), float("inf")
    for kind, setting in KNOBS:
        turned, wanted = _turned(kind, asked, stage, name)
        if turned is None:
            continue
        parts = scaled(fullest(phases_of(turned, turned.stage, wanted)), factor)
        fit = judge(wanted, parts, asked.device.memory)
        if fit.total_gb >= 0.99 * before:
            continue
        asked, stage, name, before = turned, turned.stage, wanted, fit.total_gb
        yield setting.format(half=asked.stage.data.max_length), fit
        if fit.verdict == "fits":
            return


def _turned(kind: str, asked: Asked, stage: Stage, name: str) -> tuple[Asked | None, str]:
    """The same with one setting changed; None where it is so already or has no meaning here."""
    model, batches, cuda = stage.model, asked.batches, asked.accelerator == "cuda"

    def over(**changes: Any) -> Asked:
        return replace(asked, stage=stage.model_copy(update={"model": model.model_copy(update=changes)}))

    match kind:
        case "checkpointing" if not model.gradient_checkpointing:
            return over(gradient_checkpointing=True), name
        case "micro" if batches.micros and max(m.rows for m in batches.micros) > asked.needs.sequences:
            return replace(
                asked, batches=replace(batches, micros=_singles(batches.micros, asked.needs.sequences))
            ), name
        case "answers" if batches.answers * (batches.prompt + batches.answer) > 8192:
            few = max(1, 8192 // (batches.prompt + batches.answer))
            prompts = min(batches.prompts, few)
            return replace(asked, batches=replace(batches, answers=few, prompts=prompts)), name
        case "fsdp" if asked.devices > 1 and name != "fsdp" and not asked.needs.online:
            return asked, "fsdp"  # the generator local cannot speak for split weights
        case "lora" if model.adapter is None:
            return over(adapter=Adapter()), "ddp" if name == "fsdp" else name
        case "16bit" if model.dtype == "float32" and model.adapter is not None and cuda:
            return over(dtype="bfloat16"), name
        case "qlora" if model.adapter is not None and model.adapter.quantize is None and cuda:
            return over(adapter=model.adapter.model_copy(update={"quantize": "nf4"})), "ddp" if name == "fsdp" else name
        case "half" if batches.micros and not asked.needs.online:
            half = max(1, stage.data.max_length // 2)
            short = tuple(
                replace(m, width=min(m.width, half), scored=min(m.scored, m.rows * half)) for m in batches.micros
            )
            data = stage.data.model_copy(update={"max_length": half})
            return replace(
                asked, stage=stage.model_copy(update={"data": data}), batches=replace(batches, micros=short)
            ), name
    return None, name


def _singles(micros: tuple[Micro, ...], sequences: int) -> tuple[Micro, ...]:
    """One example at a time."""
    widest = max(micros, key=lambda micro: micro.width)
    scored = -(-widest.scored * sequences // widest.rows)
    one = Micro(sequences, widest.width, scored, widest.padded and sequences > 1)
    return (one, one)
