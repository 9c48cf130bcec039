"""The JSON schema of run files, with the settings of every installed plugin: what editors complete and check by.

It is a little laxer than ``load``: what a stage leaves out may stand at the top, so nothing but ``output`` is required.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align.core.plugin_system.registry import Registry, config_of
from align.schemas.errors import AlignError
from align.schemas.run import Run, Stage

_REFERENCES = "#/$defs/{model}"
_SPELT_OUT = {"Choice", "RewardChoice"}  # each has its plugins' settings in its place


def run_schema(registry: Registry) -> tuple[dict[str, Any], list[AlignError]]:
    """The schema (draft 2020-12), and the errors of plugins that had to be left out of it."""
    broken: list[AlignError] = []
    stage = Stage.model_json_schema(ref_template=_REFERENCES)
    definitions: dict[str, Any] = stage.pop("$defs")
    for definition in [stage, *definitions.values()]:
        definition.pop("required", None)

    properties = stage["properties"]
    properties["algorithm"] = _choice(registry, "algorithm", definitions, broken)
    properties["loggers"]["items"] = _choice(registry, "logger", definitions, broken)
    definitions["Devices"]["properties"]["strategy"] = _choice(registry, "strategy", definitions, broken)
    definitions["Source"]["properties"]["format"]["enum"] = ["auto", *registry.names("format")]
    reward = _choice(registry, "reward", definitions, broken, definitions.pop("RewardChoice")["properties"])
    rollout = definitions["Rollout"]["properties"]
    rollout["generator"] = _choice(registry, "generator", definitions, broken)
    rollout["rewards"]["items"] = reward
    definitions["Validation"]["properties"]["rewards"]["items"] = reward
    rollout["gold"] = {"anyOf": [reward, {"type": "null"}], "description": rollout["gold"]["description"]}
    row = {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/Source"}]}
    data = definitions["Data"]["properties"]
    data["train"] = _as_well(data["train"], row)
    data["validation"] = _as_well(data["validation"], row)
    definitions.pop("Choice", None)

    definitions["Stage"] = stage
    run = Run.model_json_schema(ref_template=_REFERENCES)
    others = sorted(run["$defs"].keys() - definitions.keys() - _SPELT_OUT)
    definitions |= {key: run["$defs"][key] for key in others}
    top = {key: value for key, value in properties.items() if key != "name"}
    top |= {key: run["properties"][key] for key in ("output", "project", "overrides", "stages")}
    top["name"] = properties["name"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "align run file",
        "type": "object",
        "properties": top,
        "required": ["output"],
        "additionalProperties": False,
        "$defs": definitions,
    }, broken


def _as_well(many: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """A list of sources, or one by itself."""
    about = {"description": many["description"]} if "description" in many else {}
    null = [{"type": "null"}] if "default" in many else []
    return {"anyOf": [*row["anyOf"], {"type": "array", "items": row}, *null], **about}


def _choice(
    registry: Registry,
    kind: str,
    definitions: dict[str, Any],
    broken: list[AlignError],
    beside: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A name, or a mapping whose ``type`` decides which settings it may have beside what all of the kind may."""
    branches = []
    common = {key: value for key, value in (beside or {}).items() if key not in ("type", "settings")}
    for name in registry.names(kind):
        try:
            config = config_of(registry.get(kind, name))
        except AlignError as error:
            broken.append(error)
            continue
        prefix = f"{kind}.{name}."
        schema = config.model_json_schema(ref_template=f"#/$defs/{prefix}{{model}}")
        definitions |= {prefix + model: inner for model, inner in schema.pop("$defs", {}).items()}
        properties = {"type": {"const": name}, **common, **schema.get("properties", {})}
        chosen = {"properties": {"type": {"const": name}}, "required": ["type"]}
        branches.append({"if": chosen, "then": {"properties": properties, "additionalProperties": False}})
    names = {"enum": registry.names(kind)}
    return {"anyOf": [names, {"type": "object", "properties": {"type": names}, "allOf": branches}]}
