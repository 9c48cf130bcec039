"""Memory plans: tuning and sharding, the first that fits in the order of cost, and remedies where none does.

fits            total <= 0.9 of a device's memory
tight           up to the whole
does not fit    beyond
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from align.advisor.estimate import memory_formulas
from align.advisor.estimate.memory_formulas import Setting, Tuning
from align.advisor.estimate.model_shape import ModelShape
from align.schemas.advice import Fit
from align.schemas.engine import PLANNED_SHARE

Verdict = Literal["fits", "tight", "does_not_fit"]


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """A tuning and a sharding of a model, with the name that users see."""

    name: str
    tuning: Tuning
    sharding: memory_formulas.Sharding
    ours: bool = True
    """True where align's own engine has it; others are shown for comparison."""

    def of(self, setting: Setting) -> Setting:
        """Return the setting under this plan."""
        return replace(setting, tuning=self.tuning, sharding=self.sharding)


FULL = (
    MemoryPlan("full-ddp", "full", "ddp"),
    MemoryPlan("full-fsdp-zero2", "full", "fsdp_zero2"),
    MemoryPlan("full-fsdp", "full", "fsdp"),
)
ADAPTED = (
    MemoryPlan("lora-ddp", "lora", "ddp"),
    MemoryPlan("lora-fsdp", "lora", "fsdp"),
    MemoryPlan("qlora-ddp", "qlora", "ddp"),
    MemoryPlan("qlora-fsdp", "qlora", "fsdp", ours=False),
)
OFFLOAD = MemoryPlan("full-fsdp-offload", "full", "fsdp_offload")
"""The last resort: slow, and only where the host has the memory."""


def plans_in_order(adapters_first: bool, devices: int) -> list[MemoryPlan]:
    """Return the plans in the order to try them.

    Adapters first for fine-tuning on up to some 100,000 rows (as good, two thirds of the FLOPs, forgets less:
    2405.09673, LoRA Without Regret); full first for continual pre-training. On one device nothing can be split.
    """
    plans = [*ADAPTED, *FULL, OFFLOAD] if adapters_first else [*FULL, *ADAPTED, OFFLOAD]
    return [plan for plan in plans if devices > 1 or plan.sharding == "ddp"]


def verdict(total: float, capacity: float) -> Verdict:
    """Return whether so many bytes fit."""
    if total <= PLANNED_SHARE * capacity:
        return "fits"
    return "tight" if total <= capacity else "does_not_fit"


def judge(name: str, parts: Mapping[str, float], capacity: float, knob: str = "") -> Fit:
    """Compare bytes by component with a device's memory."""
    total = sum(parts.values())
    return Fit(
        strategy=name,
        verdict=verdict(total, capacity),
        per_gpu_gb={key: round(value / 1e9, 3) for key, value in parts.items() if value},
        total_gb=round(total / 1e9, 3),
        short_gb=round((total - capacity) / 1e9, 3),
        knob=knob,
    )


Remedy = tuple[str, Callable[[Setting], Setting]]

REMEDIES: Sequence[Remedy] = (
    ("model.gradient_checkpointing: true", lambda s: replace(s, checkpointing=True)),
    ("logits in chunks", lambda s: replace(s, logits=0)),
    ("train.micro_batch_size: 1", lambda s: replace(s, tokens=min(s.tokens, 2048))),
    ("half the sequence length", lambda s: replace(s, tokens=max(1, s.tokens // 2))),
    ("an 8-bit optimizer", lambda s: replace(s, optimizer=min(s.optimizer, 6))),
    ("fewer answers at a time", lambda s: replace(s, concurrent=s.concurrent // 4)),
)
"""Settings that save memory, the cheapest first."""


def cheapest(shape: ModelShape, setting: Setting, capacity: float) -> str:
    """Return the remedy, or the first few together, that make it fit; else other options, in words."""
    tried = []
    for name, turn in REMEDIES:
        turned = turn(setting)
        if turned == setting:
            continue
        tried.append(name)
        setting = turned
        if sum(memory_formulas.peak(shape, setting).values()) <= PLANNED_SHARE * capacity:
            return " and ".join(tried)
    if setting.tuning == "full":
        return "an adapter (lora, then qlora), more devices, or a smaller model"
    return "qlora, more devices, or a smaller model" if setting.tuning == "lora" else "more devices or a smaller model"


def judge_plans(
    shape: ModelShape, setting: Setting, capacity: float, adapters_first: bool, ram: float | None = None
) -> Iterator[Fit]:
    """Yield the fit of every plan, in the order to try them.

    ram: bytes of the host's memory; offloading needs them, and is left out where they are unknown.
    """
    for plan in plans_in_order(adapters_first, setting.devices):
        held = plan.of(setting)
        if plan is OFFLOAD and (ram is None or memory_formulas.host(shape, held) > ram):
            continue
        fit = judge(plan.name, memory_formulas.peak(shape, held), capacity)
        if fit.verdict == "fits" and not plan.ours:
            fit = fit.model_copy(update={"knob": "align cannot split a quantised base"})
        elif fit.verdict != "fits":
            fit = fit.model_copy(update={"knob": cheapest(shape, held, capacity)})
        yield fit


NOT_OURS = frozenset(plan.name for plan in (*FULL, *ADAPTED, OFFLOAD) if not plan.ours)
"""Plans that align's own engine does not have."""


def choose(judged: Sequence[Fit]) -> Fit | None:
    """Return the first of align's own plans that fits, else the first that is tight, else None."""
    own = [fit for fit in judged if fit.strategy not in NOT_OURS]
    for wanted in ("fits", "tight"):
        found = next((fit for fit in own if fit.verdict == wanted), None)
        if found is not None:
            return found
    return None
