"""The tuning of each stage (full, lora, qlora) and the settings to start from (default_settings.yaml)."""

from __future__ import annotations

import functools
from importlib.resources import files
from typing import Any

import yaml

from align.advisor.estimate.memory_formulas import Tuning
from align.advisor.predicates import ALGORITHM, DATA_OF, scorer
from align.advisor.project_facts import Facts, Plan
from align.advisor.thresholds import Thresholds
from align.schemas.advice import AlgorithmSettings, HardwareFit

HEAVIEST: tuple[Tuning, ...] = ("full", "lora", "qlora")
"""By memory, the largest first."""


def algorithms(facts: Facts, limit: Thresholds, plan: Plan, hardware: HardwareFit | None) -> list[AlgorithmSettings]:
    """Return the algorithm of every stage that trains or samples, with its tuning, settings and their sources."""
    stages = [step.stage for step in plan.steps if step.stage in _table()]
    return [_start(facts, stage, _tuning(facts, limit, stage, hardware)) for stage in dict.fromkeys(stages)]


def planned_tuning(facts: Facts, limit: Thresholds, plan: Plan) -> Tuning | None:
    """Return the tuning that memory is estimated for: the largest that any stage wants; None where no stage trains."""
    wanted = {wanted_tuning(facts, limit, step.stage) for step in plan.steps if step.stage in _table()}
    return min(wanted, key=HEAVIEST.index, default=None)


def wanted_tuning(facts: Facts, limit: Thresholds, stage: str) -> Tuning:
    """Return the requested tuning; else full weights for a corpus or many rows, and an adapter for the rest.

    An adapter learns as much from up to about 100K rows and forgets less (Biderman 2405.09673).
    """
    if facts.project.training.tuning:
        return facts.project.training.tuning
    held = facts.data(DATA_OF[stage])
    many = held is not None and (held.size.rows or 0) > limit.lora_rows
    return "full" if stage == "continual_pretraining" or many else "lora"


def _tuning(facts: Facts, limit: Thresholds, stage: str, hardware: HardwareFit | None) -> Tuning:
    """Return the wanted tuning, unless memory leaves room for a smaller one only."""
    wanted = wanted_tuning(facts, limit, stage)
    chosen = hardware.chosen if hardware else None
    asked_fits = hardware is None or hardware.asked is None or hardware.asked.verdict != "does_not_fit"
    if chosen is None or (facts.project.training.tuning and asked_fits):
        return wanted
    found = next((tuning for tuning in HEAVIEST if tuning == chosen.strategy.split("-")[0]), wanted)
    return max(wanted, found, key=HEAVIEST.index)


def _start(facts: Facts, stage: str, tuning: Tuning) -> AlgorithmSettings:
    chosen = [entry for entry in _table()[stage] if _holds(entry, facts, stage, tuning)]
    start: dict[str, Any] = {key: value for entry in chosen for key, value in entry["start"].items()}
    if tuning == "qlora":
        start["model.adapter.quantize"] = "nf4"
    source = "; ".join(entry["source"] for entry in chosen)
    ordered = dict(sorted(start.items()))
    return AlgorithmSettings(stage=stage, name=ALGORITHM.get(stage, stage), tuning=tuning, start=ordered, source=source)


def _holds(entry: dict[str, Any], facts: Facts, stage: str, tuning: Tuning) -> bool:
    model, held = facts.project.model, facts.data(DATA_OF[stage])
    count = held.size.rows if held else None
    return (
        entry.get("tuning", tuning).removeprefix("q") == tuning.removeprefix("q")
        and entry.get("from_b", 0) <= (model.params_b or 0)
        and entry.get("model", model.type) == model.type
        and entry.get("reward", scorer(facts)) == scorer(facts)
        and (count is None or count < entry["below_rows"] if "below_rows" in entry else True)
        and not ("below_rows" in entry and count is None)
    )


@functools.cache
def _table() -> dict[str, list[dict[str, Any]]]:
    read = yaml.load((files("align.advisor") / "default_settings.yaml").read_text(encoding="utf-8"), yaml.CSafeLoader)
    return {stage: entries for stage, entries in read.items() if stage != "version"}
