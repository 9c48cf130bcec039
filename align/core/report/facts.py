"""Facts about a stage for the report: algorithm, model, data, steps, and the settings that differ from defaults."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from align.core.plugin_system.registry import model_at
from align.core.report.read import StageFacts
from align.schemas.run import Choice, Stage
from align.schemas.text import number

_IN_FACTS = ("name", "model.path", "data.train", "algorithm.type", "seed")
_ABSENT = object()


def facts(stage: StageFacts) -> Iterator[tuple[str, str]]:
    """Yield pairs of label and value, in the order of the page."""
    settings, noted = stage.settings, stage.noted
    yield "algorithm", settings["algorithm"]["type"]
    yield "starts from", settings["model"]["path"]
    for source in stage.data.get("sources", []):
        what = "held out" if source.get("held_out") else "learns from"
        yield what, f"{source['path']}: {source['rows']:,} {source['form']}"
    if stage.data.get("bad"):
        yield "bad rows", f"{stage.data['bad']:,}"
    if "steps" in noted:
        yield "steps", plan(stage)
    if tokens := stage.curves.get("num_tokens"):
        yield "tokens seen", number(tokens[-1][1])
    yield "seed", str(settings["seed"])
    if "world_size" in noted:
        yield "processes", str(noted["world_size"])
    if "data" in noted:
        yield "data hash", noted["data"][:12]


def plan(stage: StageFacts) -> str:
    """Return ``625 steps of 16 examples``."""
    steps, examples = stage.noted["steps"], stage.settings["train"]["batch_size"]
    what = "completions" if stage.from_rewards else "examples"
    return f"{steps:,} {'step' if steps == 1 else 'steps'} of {examples:,} {what if examples != 1 else what[:-1]}"


def steps_per_phase(stage: StageFacts) -> int:
    """Return the optimizer steps that a stage which learns from rewards takes on the completions of one phase.

    The manifest has them; of a run that did not record them, they follow from the settings that were given.
    """
    if isinstance(noted := stage.noted.get("steps_per_rollout"), int):
        return noted
    rollout = stage.settings.get("rollout") or {}
    counts = (rollout.get("batches", 1), stage.settings["algorithm"].get("num_iterations", 1))
    return counts[0] * counts[1] if all(isinstance(count, int) for count in counts) else 1


def chosen(stage: StageFacts) -> list[tuple[str, str]]:
    """Return (dotted key, value) of each setting that differs from its default and that ``facts`` does not show.

    Of a plugin's own settings, those that were given: their defaults are in its class, and many import torch.
    """
    defaults = dict(_leaves(_defaults(Stage, stage.settings)))
    differing = [(key, value) for key, value in _leaves(stage.settings) if defaults.get(key, _ABSENT) != value]
    return [(key, _written(value)) for key, value in differing if key not in _IN_FACTS]


def _defaults(model: type[BaseModel], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the default of every setting, also in sections of ``given`` that are absent by default (``adapter``)."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        section, value = model_at(model, (name,)), given.get(name)
        if section is Choice or section is None or not isinstance(value, Mapping):
            default = None if field.is_required() else field.get_default(call_default_factory=True)
            found[name] = [_plain(each) for each in default] if isinstance(default, list) else _plain(default)
        else:
            found[name] = _defaults(section, value)
    return found


def _plain(default: Any) -> Any:
    """Return a default as ``run.yaml`` has it, where a plugin's settings stand next to its ``type``."""
    if isinstance(default, Choice):
        return {"type": default.type, **default.settings}
    return default.model_dump(mode="json") if isinstance(default, BaseModel) else default


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted key and value of every leaf of nested mappings."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _written(value: Any) -> str:
    """Write a value as in a run file; of a list of sources or plugins only their paths or types."""
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        return ", ".join(str(item.get("path", item.get("type", ""))) for item in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
