"""Checking settings against a Config, strictly, and saying what is wrong in the user's terms.

Values are checked as JSON in pydantic's strict mode: ``true`` is no number, ``"5"`` is no number, 2.0 is no count.
"""

from __future__ import annotations

import functools
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError, create_model
from pydantic_core import ErrorDetails, to_json

from align.schemas.base import Config
from align.schemas.errors import AlignError, Problem, did_you_mean
from align.schemas.renamed import fix_for, new_name
from align.schemas.text import is_secret, redacted

Path = tuple[str | int, ...]
Where = Callable[[Path], str]
Fixes = Callable[[], Mapping[str, str]]
"""Returns the fix for keys that are often misplaced or have another name here; called for an unknown key only."""
Model = TypeVar("Model", bound=BaseModel)

_WORDS = {
    "a valid array": "a list",
    "a valid dictionary": "a mapping",
    "an object": "a mapping",
    "a valid string": "text",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
}


def dotted(path: Path) -> str:
    """``('loggers', 0, 'type')`` as ``loggers[0].type``."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


def check(model: type[Model], values: Any, where: Where, fixes: Fixes | None = None, section: str = "") -> Model:
    """Make a model of plain values.

    where: the place of a path into ``values``, in the user's terms. fixes: of keys that belong elsewhere. section: the
    part of a stage that ``values`` are (``algorithm``), to recognise keys that were renamed. Raises AlignError
    with every problem there is.
    """
    try:
        return model.model_validate_json(to_json(values), strict=True)
    except ValidationError as error:
        problems = _problems(error.errors(include_url=False), model, values, where, fixes, section)
        raise AlignError.gather(problems) from None


def unknown(key: str, known: Iterable[str], fixes: Mapping[str, str]) -> str:
    """Return the fix for an unknown key. fixes: of keys that are known to belong elsewhere, or to be needless."""
    return fixes.get(key) or did_you_mean(key, known) or "remove it"


@functools.cache
def function_config(function: Callable[..., Any]) -> type[Config]:
    """A Config made of a function's keyword-only arguments."""
    parameters = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    annotations = {p.name: p.annotation for p in parameters if p.annotation is not p.empty}
    # Only these are resolved: the other arguments' types may stand behind TYPE_CHECKING.
    holder = SimpleNamespace(__annotations__=annotations)
    types = typing.get_type_hints(holder, function.__globals__, include_extras=True)
    fields: dict[str, Any] = {
        p.name: (types.get(p.name, Any), ... if p.default is p.empty else p.default) for p in parameters
    }
    return create_model(function.__name__, __base__=Config, __module__=function.__module__, **fields)


def model_at(model: type[BaseModel], path: Path) -> type[BaseModel] | None:
    """The model that a path into another leads to, or None where it leads to none or to one of several."""
    for key in path:
        if isinstance(key, int):
            continue  # lists are looked through
        if key not in model.model_fields:
            return None
        inner = set(_models(model.model_fields[key].annotation))
        if len(inner) != 1:
            return None
        model = inner.pop()
    return model


def takes_null(model: type[BaseModel], path: Path) -> bool:
    """Return whether ``null`` is a value of the field at ``path``: ``max_grad_norm: null`` is no clipping.

    True also where there is no such field: an unknown key is for ``check`` to report.
    """
    owner = model_at(model, path[:-1])
    field = owner.model_fields.get(str(path[-1])) if owner is not None else None
    return field is None or field.annotation is Any or type(None) in typing.get_args(field.annotation)


def fixes_by_section(model: type[BaseModel], leave_out: type[BaseModel] | None = None) -> dict[str, str]:
    """Return the fix for keys that one section of a model has, written elsewhere: ``write it as train.max_steps``."""
    found: dict[str, list[str]] = {}
    for name in model.model_fields:
        section = model_at(model, (name,))
        for key in section.model_fields if section is not None and section is not leave_out else ():
            found.setdefault(key, []).append(f"{name}.{key}")
    return {key: f"write it as {places[0]}" for key, places in found.items() if len(places) == 1}


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models(argument)


def _problems(
    errors: list[ErrorDetails],
    model: type[BaseModel],
    values: Any,
    where: Where,
    fixes: Fixes | None,
    section: str,
) -> Iterator[Problem]:
    """One problem per place: the alternatives of a union fail one by one and are one mistake."""
    by_place: dict[Path, list[ErrorDetails]] = {}
    for error in errors:
        by_place.setdefault(_real(error, values), []).append(error)
    for path, found in by_place.items():
        first, value = found[0], _value(values, path)
        if first["type"] == "extra_forbidden":
            owner = model_at(model, path[:-1])
            known = owner.model_fields if owner else ()
            above, key = _section(section, path[:-1]), str(path[-1])
            if new_name(above, key) in known:
                yield Problem(where(path), "has a new name", fix_for(above, key))
            else:
                yield Problem(where(path), "is not a key here", unknown(key, known, fixes() if fixes else {}))
        elif first["type"] == "missing":
            owner = model_at(model, path[:-1])
            about = (owner.model_fields[str(path[-1])].description or "") if owner else ""
            first_sentence = re.split(r"(?<=[.;])\s", " ".join(about.split()), maxsplit=1)[0]
            yield Problem(where(path), "is missing", first_sentence)
        elif first["type"] == "value_error":
            yield from _from_message(str(first["ctx"]["error"]), model, path, where)
        elif not any(len(other) > len(path) and other[: len(path)] == path for other in by_place):
            wanted = " or ".join(dict.fromkeys(_wanted(error) for error in found)).replace(" or must be ", " or ")
            expected = [word for error in found for word in _expected(error)]
            near = did_you_mean(value, expected) if isinstance(value, str) else ""
            yield Problem(where(path), f"is {_shown(path, value)}; {wanted}", near if near.startswith("did") else "")


def _section(section: str, path: Path) -> str:
    """The dotted section of a stage that a path leads to, whichever stage or item of a list it is in."""
    inside = path[1:] if path[:1] == ("stages",) else path
    return ".".join(filter(None, [section, *(key for key in inside if isinstance(key, str))]))


def _real(error: ErrorDetails, values: Any) -> Path:
    """Return the place of an error in the values: pydantic's path also names the alternatives of a union."""
    path: list[str | int] = []
    for key in error["loc"]:
        if (isinstance(values, dict) and key in values) or (isinstance(values, list) and isinstance(key, int)):
            values = values[key]  # type: ignore[index]
            path.append(key)
    if error["type"] == "missing":
        path.append(error["loc"][-1])
    return tuple(path)


def _value(values: Any, path: Path) -> Any:
    for key in path:
        if not isinstance(values, dict | list) or (isinstance(values, dict) and key not in values):
            return None
        values = values[key]  # type: ignore[index]
    return values


def _shown(path: Path, value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if path and is_secret(str(path[-1])):
        return "hidden here"
    text = redacted(repr(value))
    return text if len(text) <= 60 else f"{text[:57]}..."


def _wanted(error: ErrorDetails) -> str:
    message = error["msg"].removeprefix("Input should be ")
    for pydantic, ours in _WORDS.items():
        message = message.replace(pydantic, ours)
    return f"must be {message}" if error["msg"].startswith("Input should be ") else message


def _expected(error: ErrorDetails) -> list[str]:
    return re.findall(r"'([^']*)'", str(error.get("ctx", {}).get("expected", "")))


def _from_message(message: str, model: type[BaseModel], path: Path, where: Where) -> Iterator[Problem]:
    """Yield a problem for each line of a validator's message, at the field it begins with (``model.dtype``)."""
    for line in message.splitlines():
        word, _, rest = line.partition(" ")
        *parents, name = word.strip("`':,").split(".")
        owner = model_at(model, (*path, *parents))
        if owner is not None and name in owner.model_fields:
            yield Problem(where((*path, *parents, name)), rest)
        else:
            yield Problem(where(path), line)
