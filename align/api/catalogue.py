"""Catalogue of what the installed plugins offer, and of its settings."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from align.core.plugin_system.diagnose import about
from align.core.plugin_system.registry import KINDS, Offer, config_of, registry
from align.core.util.system_errors import explaining
from align.schemas.errors import AlignError, did_you_mean


@dataclass(frozen=True, slots=True)
class PluginSummary:
    """A thing that a plugin offers, in one line. plugin: the plugin's name."""

    kind: str
    name: str
    plugin: str
    about: str


@dataclass(frozen=True, slots=True)
class SettingDescription:
    """One setting. type: in a few words: ``number > 0``, ``"linear" | "cosine"``. default: None where required."""

    name: str
    type: str
    required: bool
    default: Any
    about: str


@dataclass(frozen=True, slots=True)
class PluginDescription:
    """A thing that a plugin offers, with its settings. plugin: the plugin's name. target: its ``module:name``."""

    kind: str
    name: str
    plugin: str
    target: str
    about: str
    paper: str
    settings: tuple[SettingDescription, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the same as plain data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class RewardDescription:
    """A reward. needs: columns that rows must have. isolated: each completion is scored in a process of its own."""

    name: str
    distribution: str
    required_columns: tuple[str, ...]
    isolated: bool
    about: str

    def to_json(self) -> dict[str, Any]:
        """Return the same as plain data."""
        return asdict(self)


@explaining()
def list_plugins(kind: str | None = None) -> list[PluginSummary]:
    """Return what the installed plugins offer, without importing it. kind: only one, such as ``"algorithm"``.

    Raises AlignError for an unknown kind.
    """
    if kind is not None and kind not in KINDS:
        raise AlignError(f"{kind!r} is no kind of plugin", did_you_mean(kind, KINDS), where="kind")
    offers = [
        offer for each in ([kind] if kind else KINDS) for some in registry.offers(each).values() for offer in some
    ]
    return [PluginSummary(offer.kind, offer.name, offer.plugin.name, about(offer)) for offer in offers]


@explaining()
def describe_plugin(name: str, kind: str | None = None) -> list[PluginDescription]:
    """Return what every plugin offers under a name, with its settings. kind: only of this kind.

    Imports what it describes. Raises AlignError for a name that no plugin offers, and where importing fails.
    """
    kinds = [kind] if kind else list(KINDS)
    found = [offer for each in kinds for offer in registry.offers(each).get(name, [])]
    if not found and kind:
        registry.find(kind, name)  # raises, with the reason where a broken plugin may offer it
    if not found:
        known = {known for each in kinds for known in registry.names(each)}
        raise AlignError(f"no plugin offers {name!r}", did_you_mean(name, known))
    return [_described(offer) for offer in found]


@explaining()
def list_rewards() -> list[RewardDescription]:
    """Return all rewards. Imports them. Raises AlignError where that fails."""
    from align.core.rewards.reward_base import from_function

    found = []
    for name, offers in registry.offers("reward").items():
        thing = offers[0].resolve()
        known: Any = thing if inspect.isclass(thing) else from_function(thing, name)
        settings = config_of(thing).model_fields
        column = settings["column"].default if "column" in settings else None
        required_columns = tuple(known.required_columns) or ((column,) if column else ())
        first_line = (inspect.getdoc(thing) or "").split("\n")[0]
        isolated = known.seconds is not None
        found.append(RewardDescription(name, offers[0].plugin.distribution, required_columns, isolated, first_line))
    return found


def _described(offer: Offer) -> PluginDescription:
    thing = offer.resolve()
    schema = config_of(thing).model_json_schema() if KINDS[offer.kind].configured else {}
    required = schema.get("required", ())
    settings = tuple(
        SettingDescription(
            name,
            type_in_words(setting),
            name in required,
            setting.get("default"),
            " ".join(setting.get("description", "").split()),
        )
        for name, setting in schema.get("properties", {}).items()
    )
    target = f"{getattr(thing, '__module__', '')}:{getattr(thing, '__qualname__', offer.name)}"
    text, paper = inspect.getdoc(thing) or "", getattr(thing, "paper", "")
    return PluginDescription(offer.kind, offer.name, str(offer.plugin), target, text, paper, settings)


def type_in_words(schema: Mapping[str, Any]) -> str:
    """Return a JSON schema in a few words: ``number > 0``, ``"linear" | "cosine"``."""
    if "anyOf" in schema:
        return " | ".join(map(type_in_words, schema["anyOf"]))
    if "$ref" in schema:
        return str(schema["$ref"].rsplit("/", 1)[-1])
    if "enum" in schema or "const" in schema:
        return " | ".join(map(json.dumps, schema.get("enum", [schema.get("const")])))
    bounds = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    limits = [f"{sign} {schema[key]:g}" for key, sign in bounds.items() if key in schema]
    if schema.get("type") == "array":
        return f"list of {type_in_words(schema.get('items', {}))}"
    return " ".join([str(schema.get("type", "any")), *limits])
