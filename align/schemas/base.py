"""The pydantic base every configuration in align is built on."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Base class of settings. Strict: unknown keys, NaN and infinity are refused, and values never change.

    ``hide_input_in_errors`` keeps a token or a password given in the wrong place out of the message.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
        validate_default=True,
        protected_namespaces=(),
    )


class DeferredConfig(Config):
    """Base class of align's own schemas: validators are built at first use, which a command often has for few.

    A plugin's settings are no such class: what is wrong with them is to show as the plugin is loaded.
    """

    model_config = ConfigDict(defer_build=True)
