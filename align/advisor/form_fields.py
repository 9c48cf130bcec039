"""The fields that a description can state, each with its type: the form's own, data by kind, methods tried."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError

from align.schemas.base import field_docstrings
from align.schemas.project import DataKind, DataSet, Measured, Project, Size, Tried

KINDS: dict[DataKind, str] = {
    "corpus": "text to go on with pre-training",
    "documents": "pages to be looked up",
    "sft_pairs": "inputs with the answer wanted",
    "preference_pairs": "two answers, and which is better",
    "unpaired_feedback": "single answers marked good or bad",
    "prompts": "inputs without answers",
    "logs": "conversations in production, unjudged",
    "eval_set": "rows held out for measuring",
}
"""The content of each kind of data, for questions about it."""
COUNTS = ("behaviour.rules_count", "constraints.max_n", "constraints.requests_per_day", "evals.held_out_rows")
"""Fields that count things, in addition to the rows and documents of data."""


@dataclass(frozen=True, slots=True)
class FieldOf:
    """One field. annotation: the type of its value without None.

    model: the part of the form that has it, by its docstring. summary: its description where it is in no such part.
    """

    path: str
    annotation: Any
    summary: str = ""
    model: type[BaseModel] | None = None

    @property
    def about(self) -> str:
        """Return the form's description of it, in one line."""
        if self.model is None:
            return self.summary
        docstring = field_docstrings(self.model).get(self.path.rpartition(".")[2], "")
        return " ".join(docstring.split())

    @property
    def numeric(self) -> bool:
        """Return whether its value is a number."""
        base = self.annotation
        while get_origin(base) not in (None, Literal):
            base = get_args(base)[0]
        return base in (int, float)

    @property
    def counts(self) -> bool:
        """Return whether its value counts things.

        What a number counts is a matter of reading; a unit that is written (tokens, %, GPUs, seconds, 7B) is not.
        """
        return self.path in COUNTS or (self.path.startswith("data.") and self.path.endswith((".rows", ".docs")))

    @property
    def choices(self) -> tuple[Any, ...]:
        """Return the values it can have, where those can be listed; else ()."""
        if self.annotation is bool:
            return (True, False)
        return get_args(self.annotation) if get_origin(self.annotation) is Literal else ()

    @property
    def listed(self) -> bool:
        """Return whether its value is a list."""
        return get_origin(self.annotation) is list

    def parsed(self, value: Any) -> Any:
        """Return the value in the field's own type. Raises ValueError with the reason for a value that does not fit."""
        adapter = TypeAdapter(self.annotation)
        try:
            return adapter.validate_python(value, strict=not self.numeric or isinstance(value, bool))
        except ValidationError as error:
            raise ValueError(error.errors(include_url=False, include_input=False)[0]["msg"]) from None

    def fault(self, value: Any) -> str:
        """Return the reason why a value does not fit this field; "" where it does."""
        try:
            self.parsed(value)
        except ValueError as error:
            return str(error)
        return ""


@functools.cache
def fields() -> dict[str, FieldOf]:
    """Return all fields by path, in the form's order.

    Paths of files are left out: files are opened, so only a form may name them, never words of a description.
    """
    found = list(_of(Project, ""))
    for kind in get_args(DataKind):
        found.append(FieldOf(f"data.{kind}", bool, f"whether there are {KINDS[kind]}"))
        found += [_field(f"data.{kind}.{name}", Size) for name in Size.model_fields]
        found += [
            _field(f"data.{kind}.{name}", DataSet)
            for name in DataSet.model_fields
            if name not in ("kind", "size", "path", "note")
        ]
    found += [FieldOf(f"tried.{method}", bool, f"whether {method} was tried") for method in get_args(Tried)]
    return {field.path: field for field in found}


@functools.cache
def settable() -> dict[str, FieldOf]:
    """Return the fields of the form that a setting can name, data sets aside: files and notes too, and whole lists."""
    found = [*_of(Project, "", leaving=("description", "data", "tried", "measured"))]
    listed = [FieldOf("data", list[DataSet], "the data on hand"), FieldOf("tried", list[Tried], "the methods tried")]
    return {field.path: field for field in [*found, *listed]}


@functools.cache
def data_fields() -> dict[str, FieldOf]:
    """Return the fields of a data set, its sizes among them, by name."""
    sizes = {name: _field(f"data.{name}", Size) for name in Size.model_fields}
    return sizes | {name: _field(f"data.{name}", DataSet) for name in DataSet.model_fields if name != "size"}


def value_at(project: Project, path: str) -> Any:
    """Return the form's value at a dotted path; None where it is unknown, or the path leads to no single field."""
    value: Any = project
    for key in path.split("."):
        value = getattr(value, key, None)
    return value


def _of(
    model: type[BaseModel], above: str, leaving: tuple[str, ...] = ("description", "note", "path", "data", "tried")
) -> Iterator[FieldOf]:
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            if inner is Measured:
                continue  # is measured, not stated
            yield from _of(inner, f"{above}{name}.", leaving)
        elif name not in leaving:
            yield _field(f"{above}{name}", model)


def _field(path: str, model: type[BaseModel]) -> FieldOf:
    """Return the field of a model that a path ends with: its type without None, the constraints kept."""
    inner = model.model_fields[path.rpartition(".")[2]].annotation
    if get_origin(inner) in (Union, types.UnionType):
        (inner,) = (part for part in get_args(inner) if part is not type(None))
    return FieldOf(path, inner, model=model)
