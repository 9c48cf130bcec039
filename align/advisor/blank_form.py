"""The empty form, for somebody to fill in: every field of the schema with what its docstring says."""

from __future__ import annotations

import textwrap
import typing
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel

from align.schemas.base import field_docstrings
from align.schemas.project import DataSet, Project

HEAD = (
    "A brief: what you want a language model for. Fill in what you know, leave or delete what you do not: null is",
    "unknown, never 0, no or none. Then: align advise {file}",
    "Free words do as well, alone or next to the form: write them after `description: |`, or into a .md file.",
)
WIDTH = 110


def blank(file: str) -> str:
    """The form as YAML that reads as an empty Project. ``file`` is named in its head."""
    lines = [f"# {line.format(file=file)}" for line in HEAD]
    for name, field in Project.model_fields.items():
        section = _model(field.annotation)
        if name == "measured":
            continue  # `align advise --measure` fills it in
        if section is None or section is DataSet:
            lines += ["", *_field(Project, name, ""), *(_example() if section is DataSet else ())]
        else:
            lines += ["", *_comment(section.__doc__ or "", ""), f"{name}:", *_fields(section, "  ")]
    return "\n".join(lines) + "\n"


def _fields(model: type[BaseModel], indent: str) -> Iterator[str]:
    for name in model.model_fields:
        yield from _field(model, name, indent)


def _field(model: type[BaseModel], name: str, indent: str) -> Iterator[str]:
    field = model.model_fields[name]
    inner = _model(field.annotation) if name == "size" else None
    about = inner.__doc__ if inner else field_docstrings(model).get(name)
    yield from _comment(about or "", indent)
    empty = "{" + ", ".join(f"{key}: null" for key in inner.model_fields) + "}" if inner else "null"
    words = ", ".join(_choices(field.annotation))
    yield f"{indent}{name}: {'[]' if field.default_factory is list else empty}" + f"  # {words}" * bool(words)


def _example() -> Iterator[str]:
    """One body of data, commented out, since a list's item cannot be left empty."""
    yield "# data:"
    for line in _fields(DataSet, "    "):
        yield "#" + (line.replace("    kind", "  - kind") if line.startswith("    kind") else line)


def _comment(text: str, indent: str) -> list[str]:
    flat = " ".join(text.replace("``", "`").split())
    return [f"{indent}# {line}" for line in textwrap.wrap(flat, WIDTH - len(indent))]


def _choices(annotation: Any) -> list[str]:
    """The words that a field takes, where it takes no others."""
    if typing.get_origin(annotation) is Literal:
        return [str(word) for word in typing.get_args(annotation)]
    if annotation is bool:
        return ["true", "false"]
    return [word for inner in typing.get_args(annotation) for word in _choices(inner)]


def _model(annotation: Any) -> type[BaseModel] | None:
    """The section that a field is, or that its list holds."""
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation if issubclass(annotation, BaseModel) else None
    return next((found for inner in typing.get_args(annotation) if (found := _model(inner))), None)
