"""The pydantic base every configuration in align is built on."""

from __future__ import annotations

import ast
import functools
import inspect
import sys
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic_core import CoreSchema


class Config(BaseModel):
    """Base class of settings. Strict: unknown keys, NaN and infinity are refused, and values never change.

    ``hide_input_in_errors`` keeps a token or a password given in the wrong place out of the message.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        validate_default=True,
        protected_namespaces=(),
    )


# For classes derived from it. It has no fields itself, and to find its own source would slow down every start.
Config.model_config["use_attribute_docstrings"] = True


class DeferredConfig(Config):
    """Base class of align's own schemas: what a command has no use for is left undone as they are imported.

    Validators are built at first use, and field docstrings are read from the source when they are to be shown.
    A plugin's settings are no such class: what is wrong with them is to show as the plugin is loaded.
    """

    model_config = ConfigDict(defer_build=True, use_attribute_docstrings=False)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Return the JSON schema, with the docstrings of the fields as their descriptions."""
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema)["properties"]
        for name, docstring in field_docstrings(cls).items():
            for key in properties.keys() & {name, cls.model_fields[name].alias}:
                properties[key]["description"] = docstring
        return schema


@functools.cache
def field_docstrings(model: type[BaseModel]) -> Mapping[str, str]:
    """Return the docstrings of a model's fields, by name; of a field without one there is none."""
    found: dict[str, str] = {}
    for owner in reversed(model.__mro__):
        if issubclass(owner, DeferredConfig):
            found |= _docstrings_by_class(owner.__module__).get(owner.__name__, {})
    return found | {name: field.description for name, field in model.model_fields.items() if field.description}


@functools.cache
def _docstrings_by_class(module: str) -> Mapping[str, Mapping[str, str]]:
    """Return the field docstrings in a module's source, by class; nothing where the source is not installed."""
    try:
        statements = ast.parse(inspect.getsource(sys.modules[module])).body
    except OSError:
        return {}
    return {each.name: dict(_docstrings(each)) for each in statements if isinstance(each, ast.ClassDef)}


def _docstrings(definition: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """Yield the name and the docstring of each annotated field that a string follows."""
    for statement, after in pairwise(definition.body):
        match statement, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                yield name, inspect.cleandoc(text)
