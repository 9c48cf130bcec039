"""List what is public of align, compare it with the committed lists, and write them.

    python tools/public_api.py              print what differs; exit status 1 if anything does
    python tools/public_api.py --write      bring tests/public_api/current.txt and docs/public_api.md up to date
    python tools/public_api.py --release    the same, and begin a new comparison: current.txt becomes released.txt

``current.txt`` has a line for each public name with its signature, so that a review sees every change. ``released.txt``
is that list at the last release: a name whose line differs from it must be named under *Unreleased* in CHANGELOG.md.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import re
import sys
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).resolve().parents[1]
CURRENT = ROOT / "tests" / "public_api" / "current.txt"
RELEASED = ROOT / "tests" / "public_api" / "released.txt"
PAGE = ROOT / "docs" / "public_api.md"

MODULES = (
    "align",
    "align.hookspecs",
    "align.algorithms",
    "align.rl",
    "align.rewards",
    "align.evals",
    "align.sandbox",
    "align.formats",
    "align.generators",
    "align.models",
    "align.loggers",
    "align.rules",
    "align.settings",
    "align.http",
    "align.files",
    "align.processes",
    "align.testing",
)
"""The public modules, in the order of the reference page."""

RUN_FILE = "run file"
KINDS = ("algorithm", "reward", "format", "generator", "eval", "strategy", "logger")
"""Kinds of plugins whose settings are keys of a run file."""

Surface = dict[str, dict[str, str]]
"""The public names of each module, and the keys of the run file, each with its signature."""


# --- Python --------------------------------------------------------------------------------------------------------


def public_names(module: types.ModuleType) -> list[str]:
    """Return the public names of a module: ``__all__``, of ``align.hookspecs`` the hooks."""
    if module.__name__ == "align.hookspecs":
        return [name for name, thing in vars(module).items() if hasattr(thing, "align_spec")]
    return sorted(module.__all__)


def surface() -> Surface:
    """Return everything that is public, with signatures."""
    modules = [importlib.import_module(name) for name in MODULES]
    things = [(module.__name__, name, getattr(module, name)) for module in modules for name in public_names(module)]
    public = {thing for _, _, thing in things if inspect.isclass(thing)}
    found: Surface = {name: {} for name in MODULES}
    for module, name, thing in things:
        found[module].update(_lines(module, name, thing, public))
    found[RUN_FILE] = dict(_run_file())
    return found


def _lines(module: str, name: str, thing: Any, public: set[type]) -> Iterator[tuple[str, str]]:
    """Yield a name's own line and, for a class, one for each public member."""
    if inspect.isclass(thing):
        yield from _class_lines(name, thing, public)
    elif inspect.isfunction(thing):
        yield name, signature(thing)
    else:
        yield name, f"= {_assignment(module, name)[0]}"


def _class_lines(name: str, cls: type, public: set[type]) -> Iterator[tuple[str, str]]:
    bases = ", ".join(base.__name__ for base in cls.__bases__ if base is not object)
    own_init = vars(cls).get("__init__") if not _lists_fields(cls) else None
    yield name, f"class{f'({bases})' if bases else ''}{f' {signature(own_init)}' if own_init else ''}"
    seen: set[str] = set()
    for owner in cls.__mro__:
        # Members of a base that is public itself stand there.
        if not owner.__module__.startswith("align.") or (owner is not cls and owner in public):
            continue
        for member in dict.fromkeys([*inspect.get_annotations(owner), *vars(owner)]):
            if member.startswith("_") or member in seen or member == "model_config":
                continue
            seen.add(member)
            value = vars(owner).get(member)
            if inspect.isclass(value) and value.__qualname__ == f"{owner.__qualname__}.{member}":
                yield from _class_lines(f"{name}.{member}", value, public)
            else:
                yield f"{name}.{member}", _member(owner, member)


def _lists_fields(cls: type) -> bool:
    """Return whether a class's constructor follows from its fields, or is not for calling (a protocol)."""
    made = issubclass(cls, BaseModel) or dataclasses.is_dataclass(cls) or hasattr(cls, "_fields")
    return made or getattr(cls, "_is_protocol", False)


def _member(owner: type, name: str) -> str:
    """Return the text of a member: a field's type and default, a method's signature."""
    annotation = inspect.get_annotations(owner).get(name)
    if annotation is not None:
        default = _default(owner, name)
        text = str(getattr(annotation, "__forward_arg__", annotation))
        return text if default is None else f"{text} = {default}"
    value = vars(owner)[name]
    if isinstance(value, property | functools.cached_property):
        getter: Any = value.fget if isinstance(value, property) else value.func
        return f"property -> {inspect.signature(getter).return_annotation}"
    if isinstance(value, classmethod | staticmethod):
        return f"{type(value).__name__} {signature(value.__func__)}"
    return signature(value) if inspect.isfunction(value) else f"= {_shown(value)}"


def _default(owner: Any, name: str) -> str | None:
    """Return the default of a field of a model, dataclass or named tuple, or the value of a class attribute."""
    if issubclass(owner, BaseModel) and name in owner.model_fields:
        model_field = owner.model_fields[name]
        if model_field.default_factory is not None:
            return "(made for each)"
        return None if model_field.default is PydanticUndefined else _shown(model_field.default)
    if dataclasses.is_dataclass(owner):
        for field in dataclasses.fields(owner):
            if field.name == name and field.default_factory is not dataclasses.MISSING:
                return "(made for each)"
            if field.name == name:
                return None if field.default is dataclasses.MISSING else _shown(field.default)
    if hasattr(owner, "_field_defaults"):
        return _shown(owner._field_defaults[name]) if name in owner._field_defaults else None
    return _shown(vars(owner)[name]) if name in vars(owner) else None


def signature(function: Any) -> str:
    """Return a function's signature in one line, without what differs from process to process."""
    found = inspect.signature(function)
    parameters = []
    for parameter in found.parameters.values():
        given = parameter.default is not inspect.Parameter.empty
        annotated = parameter.annotation is not inspect.Parameter.empty
        parameters.append(
            parameter.replace(
                default=_Bare(_shown(parameter.default)) if given else parameter.default,
                annotation=_Bare(parameter.annotation) if annotated else parameter.annotation,
            )
        )
    returned = found.return_annotation
    shown = returned if returned is inspect.Signature.empty else _Bare(returned)
    return str(found.replace(parameters=parameters, return_annotation=shown))


class _Bare:
    """A text that ``inspect.Signature`` prints without quotes."""

    def __init__(self, text: object) -> None:
        self.text = text if isinstance(text, str) else inspect.formatannotation(text)

    def __repr__(self) -> str:
        return self.text


def _shown(value: Any) -> str:
    """Return a value as source has it; of a function or class the name, since its repr has an address."""
    if isinstance(value, BaseModel):
        return f"{type(value).__name__}()"  # the defaults of its fields stand at those fields
    if inspect.isfunction(value) or inspect.isclass(value):
        return "(function)" if value.__name__ == "<lambda>" else value.__name__
    if isinstance(value, frozenset):
        return f"frozenset({sorted(value)})"  # the order of a set's repr depends on the hash seed
    text = repr(value)
    return "(object)" if " at 0x" in text else text


# --- docstrings of what has none at run time -------------------------------------------------------------------------


@functools.cache
def _tree(module: str) -> ast.Module:
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, module
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def _assignment(module: str, name: str) -> tuple[str, str]:
    """Return the value of a constant or type alias as its source has it, and the docstring below it."""
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("align"):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _assignment(node.module, alias.name)
    body = _tree(module).body
    for node, after in zip(body, [*body[1:], None], strict=True):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if isinstance(node, ast.Assign | ast.AnnAssign) and name in (getattr(t, "id", None) for t in targets):
            documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            text = str(after.value.value) if documented and isinstance(after, ast.Expr) else ""  # type: ignore[attr-defined]
            return ast.unparse(node.value) if node.value else "", inspect.cleandoc(text)
    raise LookupError(f"{module} does not assign {name}")


def summary(module: str, name: str) -> str:
    """Return the first paragraph of a public name's docstring in one line; empty if it has none."""
    thing = getattr(importlib.import_module(module), name)
    own = inspect.isclass(thing) or inspect.isfunction(thing)
    text = (inspect.getdoc(thing) or "") if own else _assignment(module, name)[1]
    return " ".join(text.split("\n\n")[0].split())


# --- the run file --------------------------------------------------------------------------------------------------


def _run_file() -> Iterator[tuple[str, str]]:
    """Yield every key of a run file with its type and default: the engine's, then the settings of built-in plugins."""
    from align.core.plugin_system.registry import OURS, config_of, registry
    from align.schemas.run import Run

    yield from _keys("", Run)
    for kind in KINDS:
        for name, offers in registry.offers(kind).items():
            for offer in offers:
                if offer.plugin.distribution == OURS:
                    yield from _keys(f"{kind} {name}: ", config_of(offer.resolve()))


def _keys(path: str, config: type[BaseModel]) -> Iterator[tuple[str, str]]:
    for name, field in config.model_fields.items():
        owner = next(cls for cls in config.__mro__ if name in inspect.get_annotations(cls))
        yield path + name, _member(owner, name)
        for section in _sections(field.annotation):
            # A plugin's name and settings stand in place of these keys: they follow below, by plugin.
            if "settings" not in section.model_fields:
                yield from _keys(f"{path}{name}.", section)


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections(argument)


# --- the lists -----------------------------------------------------------------------------------------------------


def to_text(found: Surface) -> str:
    """Return the list as text: a heading for each module, a line for each name."""
    parts = [
        f"[{module}]\n" + "".join(f"{name}  {text}\n" for name, text in names.items())
        for module, names in found.items()
    ]
    return "\n".join(parts)


def from_text(text: str) -> Surface:
    """Return the list that a text holds."""
    found: Surface = {}
    for line in text.splitlines():
        if line.startswith("["):
            names = found.setdefault(line[1:-1], {})
        elif line:
            name, _, signature_ = line.partition("  ")
            names[name] = signature_
    return found


def changes(before: Surface, after: Surface) -> list[str]:
    """Return what was added, removed or changed, as the changelog is to name it.

    That is ``align.rl`` for a module, ``gae`` for a name in it, ``Algorithm.loss`` for a member, ``beta`` for a key of
    the run file. Of a new or removed module or class only its own name is given.
    """
    found = []
    for module in dict.fromkeys([*before, *after]):
        old, new = before.get(module), after.get(module)
        if old is None or new is None:
            found.append(module)
            continue
        names = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
        whole = {name for name in names if (name in old) != (name in new)}
        for name in names:
            if module == RUN_FILE:
                found.append(re.split(r"[.: ]", name)[-1])
            elif not any(name.startswith(f"{other}.") for other in whole):
                found.append(name)
    return list(dict.fromkeys(found))


def unmentioned(names: Iterable[str], changelog: str) -> list[str]:
    """Return the names that no code span under *Unreleased* holds, by themselves or with what they belong to.

    ``gae``, ``rl.gae`` and ``align.rl.gae`` name the function; ``loss`` alone does not name ``Algorithm.loss``.
    """
    section = re.search(r"^## Unreleased$(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`]+)`", section[1]) if section else []
    mentioned = [f".{word}" for span in spans for word in re.findall(r"[\w.]+", span)]
    return [name for name in names if not any(word.endswith(f".{name}") for word in mentioned)]


PREFACE = """# Public names

Plugins and scripts may import these names from align. Everything else may change at any time;
[stability.md](stability.md) says how these change. align's own plugins import nothing else, which a test holds.
Importing `align`, or a module below that does not say otherwise, loads no PyTorch.

This page is written by `nox -s api` from the docstrings; `help(align.rl.gae)` has the whole of one.
"""


def page() -> str:
    """Return the reference page: a section for each module, a row for each name."""
    parts = [PREFACE]
    for module in MODULES:
        loaded = importlib.import_module(module)
        described = inspect.getdoc(loaded) or ""
        rows = [f"| `{name}` | {_cell(summary(module, name))} |" for name in public_names(loaded)]
        parts.append("\n".join([f"## {module}", "", described, "", "| name | |", "|---|---|", *rows, ""]))
    return "\n".join(parts)


def _cell(text: str) -> str:
    """Return a docstring's text for a table: double backticks become single ones, bars are escaped."""
    return text.replace("``", "`").replace("|", "\\|")


def main() -> int:
    """Write or compare the lists; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write current.txt and the reference page")
    parser.add_argument("--release", action="store_true", help="the same, and released.txt")
    chosen = parser.parse_args()
    found = surface()
    written = {CURRENT: to_text(found), PAGE: page()}
    if chosen.release:
        written[RELEASED] = written[CURRENT]
    stale = [path for path, text in written.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        print(f"{path.relative_to(ROOT)}: {'written' if chosen.write or chosen.release else 'not up to date'}")
        if chosen.write or chosen.release:
            path.write_text(written[path], encoding="utf-8")
    names = changes(from_text(RELEASED.read_text(encoding="utf-8")), found)
    missing = unmentioned(names, (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    for name in missing:
        print(f"CHANGELOG.md: name `{name}` under Unreleased: it was added, changed or removed since the last release")
    return 1 if missing or (stale and not (chosen.write or chosen.release)) else 0


if __name__ == "__main__":
    sys.exit(main())
