"""A plugin chosen in a run file: its name, and its settings beside it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from align.schemas.base import Config


class Choice(Config):
    """A plugin by name with its settings: ``dpo``, or ``{type: dpo, beta: 0.1}``."""

    type: str
    """The plugin's name."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Everything beside ``type``; the plugin's own Config checks it."""


def spelt_out(value: Any, beside: frozenset[str] = frozenset({"type"})) -> Any:
    """``dpo`` and ``{type: dpo, beta: 0.1}`` as ``{type: dpo, settings: {beta: 0.1}}``; ``beside`` are no settings."""
    if isinstance(value, str):
        return {"type": value}
    if isinstance(value, dict) and "type" in value and "settings" not in value:
        own = {k: v for k, v in value.items() if k in beside}
        return {**own, "settings": {k: v for k, v in value.items() if k not in beside}}
    return value


Plugin = Annotated[Choice, BeforeValidator(spelt_out)]
