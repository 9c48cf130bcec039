"""The fit of a plan: hardware, FLOPs and time of its stages, and the assumptions made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from align.advisor.estimate import memory_formulas, memory_plans, training_cost
from align.advisor.estimate.memory_formulas import Setting, Tuning
from align.advisor.estimate.model_shape import ModelShape, shape_of_directory, typical_shape
from align.advisor.estimate.training_cost import Load
from align.advisor.predicates import DATA_OF, SAMPLING
from align.advisor.project_facts import Facts
from align.advisor.thresholds import Thresholds
from align.schemas import gpus
from align.schemas.advice import Assumption, Estimate, Fit, HardwareFit, PlanStep, Range
from align.schemas.errors import AlignError
from align.schemas.gpus import Device
from align.schemas.project import Project, Size

GROUP = {"grpo": 8, "rloo": 4, "ppo": 1, "best_of_n": 8}
"""Answers per prompt, where the brief gives none."""


@dataclass(frozen=True, slots=True)
class _Stage:
    """One stage with its work and memory setting."""

    name: str
    load: Load | None
    setting: Setting


def plan_fit(
    facts: Facts, steps: Sequence[PlanStep], limit: Thresholds, tuning: Tuning | None = None, prices: Path | None = None
) -> tuple[HardwareFit | None, Estimate | None, list[Assumption]]:
    """Return the fit of a plan's largest stage, the estimate of all its stages, and the assumptions made.

    tuning: that of the advice; None: adapters first, full weights first for continual pre-training. prices: the user's
    price file. The fit is None without a model's size or without a stage that trains; ``capacity_gb`` is None
    where the hardware is unknown, and then ``chosen`` is the memory it would need. Pure but for reading the
    files named.
    """
    project, assumed = facts.project, list[Assumption]()
    stages = [step.stage for step in steps if step.stage in DATA_OF]
    shape = shape_of(project, assumed)
    if not stages or shape is None:
        return None, None, assumed
    device, count = _device(project, assumed)
    estimated = [_estimate_stage(name, facts, limit, shape, count, assumed) for name in stages]
    full_first = "continual_pretraining" in stages or _rows(facts, stages) > limit.lora_rows
    adapters_first = not full_first if tuning is None else tuning != "full"
    found = _fit(project, shape, estimated, device, count, adapters_first, tuning)
    how = tuning or "full" if found.chosen is None else _tuning(found.chosen)
    total = _total(shape, estimated, how, device, count, prices)
    if device is not None and project.hardware.gpu:
        assumed.extend(_no_hours(device, estimated))
    return found, total, list({each.fact: each for each in assumed}.values())


def _no_hours(device: Device, stages: Sequence[_Stage]) -> Iterator[Assumption]:
    """Yield the reason why a named GPU gets no hours, if it has none."""
    missing = [training_cost.lacking(device, stage.load) for stage in stages if stage.load is not None]
    if figures := max(missing, key=len, default=""):
        why = f"the {figures} of {device.name} is not known"
        yield Assumption(fact="GPU-hours are left out", why=why, effect="align estimate --calibrate measures them")


def shape_of(project: Project, assumed: list[Assumption]) -> ModelShape | None:
    """Return the model's shape: of its config.json where it is a local directory, else a typical one of its size."""
    model = project.model
    if model.name and Path(model.name).expanduser().is_dir():
        try:
            return shape_of_directory(Path(model.name).expanduser())
        except AlignError:  # no config.json that can be read: its size may still be known
            pass
    if model.params_b is None:
        return None
    shape = typical_shape(model.params_b)
    what = f"{shape.layers} layers of width {shape.hidden}, vocabulary {shape.vocab:,}"
    assumed.append(
        Assumption(fact=f"model.shape = {what}", why="no config.json to read", effect="memory may differ by 15 %")
    )
    return shape


def _device(project: Project, assumed: list[Assumption]) -> tuple[Device | None, int]:
    given = project.hardware
    if given.gpus == 0:
        return None, 1
    size = None if given.memory_gb is None else given.memory_gb * 1e9
    known = gpus.find(given.gpu, size) if given.gpu else None
    if known is None and size is None:
        return None, given.gpus or 1
    if given.gpus is None:
        assumed.append(Assumption(fact="hardware.gpus = 1", why="not stated", effect="more GPUs hold more"))
    if size is None:
        assert known is not None
        assumed.append(
            Assumption(
                fact=f"hardware.memory_gb = {known.memory / 1e9:g}",
                why=f"the memory of {known.name}",
                effect="what fits depends on it",
            )
        )
        return known, given.gpus or 1
    held = replace(known, memory=size) if known else Device(given.gpu or f"{given.memory_gb:g} GB", size)
    return held, given.gpus or 1


def _estimate_stage(
    name: str, facts: Facts, limit: Thresholds, shape: ModelShape, devices: int, assumed: list[Assumption]
) -> _Stage:
    length = facts.project.training.max_length
    if length is None:
        length = limit.tokens_per_sequence
        assumed.append(
            Assumption(
                fact=f"training.max_length = {length}", why="not stated", effect="memory for activations grows with it"
            )
        )
    load = _load(name, facts, limit, assumed)
    pairs = 2 if name in ("dpo", "reward_model", "kto") else 1
    online = name in SAMPLING
    setting = Setting(
        devices=devices,
        tokens=pairs * length,
        copies=(1.0 if name == "ppo" else 0.0) + (1.0 if online and facts.project.reward.kind == "reward_model" else 0),
        critics=int(name == "ppo"),
        concurrent=32 * length if online else 0,
    )
    return _Stage(name, load, setting)


def _load(name: str, facts: Facts, limit: Thresholds, assumed: list[Assumption]) -> Load | None:
    """Return the tokens that a stage processes; None where the size of its data is not known."""
    data = facts.data(DATA_OF[name])
    if data is None and name == "continual_pretraining":
        data = facts.data("documents")
    if data is None:
        return None
    if name in SAMPLING:
        return None if data.size.rows is None else _sampling_load(name, data.size.rows, facts, limit, assumed)
    tokens = _tokens(name, data.size, limit, assumed)
    if tokens is None:
        return None
    epochs = 1
    if name == "sft":
        epochs = 2
        assumed.append(Assumption(fact="train.num_train_epochs = 2", why="not stated", effect="time grows with it"))
    reference = tokens if name in ("dpo", "kto") else 0.0
    return Load(epochs * tokens, read=reference)


def _tokens(name: str, size: Size, limit: Thresholds, assumed: list[Assumption]) -> float | None:
    """Return the tokens of a stage's data: as stated, or by their bytes, or by their rows."""
    if size.tokens is not None:
        return size.tokens
    if size.bytes:
        fact = f"bytes per token = {limit.bytes_per_token:g}"
        assumed.append(
            Assumption(fact=fact, why="tokens are not stated", effect="there may be 0.8 to 1.3 times as many tokens")
        )
        return size.bytes / limit.bytes_per_token
    if size.rows is None:
        return None
    fact = f"tokens per row = {limit.tokens_per_row}"
    assumed.append(Assumption(fact=fact, why="not stated", effect="tokens and time may be half or twice that"))
    answers = 2 if name in ("dpo", "reward_model") else 1
    return float(size.rows * limit.tokens_per_row * answers)


def _sampling_load(name: str, rows: int, facts: Facts, limit: Thresholds, assumed: list[Assumption]) -> Load:
    """Return the tokens of a stage that samples completions to ``rows`` prompts, once each."""
    fact = f"answers = {GROUP[name]} of {limit.tokens_per_answer} tokens for each prompt"
    assumed.append(Assumption(fact=fact, why="not stated", effect="time grows with both"))
    sampled = float(rows * GROUP[name] * limit.tokens_per_answer)
    if name == "best_of_n":
        return Load(0.0, read=sampled, made=sampled)
    # The prompt, taken as half a row, passes through the networks with every completion.
    forwarded = sampled * (1 + limit.tokens_per_row / 2 / limit.tokens_per_answer)
    readers = (name == "ppo") + (facts.project.reward.kind == "reward_model")
    passes = 4 if name == "ppo" else 1
    return Load(forwarded * passes, read=readers * forwarded, made=sampled, critics=int(name == "ppo"))


def _rows(facts: Facts, stages: Sequence[str]) -> int:
    held = [facts.data(DATA_OF[stage]) for stage in stages]
    return max((data.size.rows or 0 for data in held if data is not None), default=0)


def _fit(
    project: Project,
    shape: ModelShape,
    stages: Sequence[_Stage],
    device: Device | None,
    count: int,
    adapters_first: bool,
    tuning: Tuning | None,
) -> HardwareFit:
    hardest = max(stages, key=lambda stage: sum(memory_formulas.peak(shape, stage.setting).values()))
    if device is None:
        given = "CPU only" if project.hardware.gpus == 0 else "not stated"
        name = memory_plans.plans_in_order(adapters_first, 1)[0]
        parts = memory_formulas.peak(shape, name.of(hardest.setting))
        needed = memory_plans.judge(name.name, parts, 2 * sum(parts.values())).model_copy(update={"short_gb": 0.0})
        return HardwareFit(given=given, capacity_gb=None, chosen=needed)
    ram = project.hardware.cpu_ram_gb
    ram_bytes = None if ram is None else ram * 1e9
    judged = list(memory_plans.judge_plans(shape, hardest.setting, device.memory, adapters_first, ram_bytes))
    chosen = memory_plans.choose([fit for fit in judged if tuning is None or _tuning(fit) == tuning])
    chosen = chosen or memory_plans.choose(judged)
    asked = project.training.tuning
    of_asked = [fit for fit in judged if _tuning(fit) == asked and fit.strategy not in memory_plans.NOT_OURS]
    before = judged if chosen is None else judged[: judged.index(chosen)]
    return HardwareFit(
        given=f"{count} x {device.name}" + ("" if "GB" in device.name else f", {device.memory / 1e9:g} GB each"),
        capacity_gb=round(device.memory / 1e9, 3),
        chosen=chosen,
        rejected=[fit for fit in before if fit.verdict != "fits" or fit.strategy in memory_plans.NOT_OURS],
        asked=memory_plans.choose(of_asked) or (min(of_asked, key=lambda fit: fit.total_gb) if of_asked else None),
    )


def _tuning(fit: Fit) -> Tuning:
    by_name: dict[str, Tuning] = {"full": "full", "lora": "lora", "qlora": "qlora"}
    return by_name[fit.strategy.split("-")[0]]


def _total(
    shape: ModelShape, stages: Sequence[_Stage], tuning: Tuning, device: Device | None, count: int, prices: Path | None
) -> Estimate | None:
    """Return the sum over all stages; None where the size of none is known."""
    table, currency = (None, "") if prices is None else training_cost.read_prices(prices)[:2]
    found = [
        training_cost.estimate(
            shape,
            stage.load,
            "full" if stage.name == "continual_pretraining" and tuning != "qlora" else tuning,
            device,
            count,
            table,
            currency,
        )
        for stage in stages
        if stage.load is not None
    ]
    if not found:
        return None

    def added(name: str) -> Range | None:
        ranges = [getattr(each, name) for each in found]
        if any(each is None for each in ranges):
            return None
        return Range(low=float(f"{sum(r.low for r in ranges):.4g}"), high=float(f"{sum(r.high for r in ranges):.4g}"))

    left_out = [stage.name for stage in stages if stage.load is None]
    basis = "; ".join(dict.fromkeys(each.basis for each in found))
    if left_out:
        basis += f"; without {', '.join(left_out)}, whose data's size is not known"
    names = ("tokens", "flops", "gpu_hours", "wall_hours", "cost")
    return Estimate(**{name: added(name) for name in names}, currency=found[0].currency, basis=basis)
