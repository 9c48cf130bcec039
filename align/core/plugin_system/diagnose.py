"""One line about each thing that plugins offer, read from source files: importing them all would take seconds."""

from __future__ import annotations

import ast
import functools
import inspect
import re
from collections.abc import Collection, Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from align.core.plugin_system.registry import KINDS, Offer, Registry, clash, config_of
from align.schemas.errors import AlignError, Problem

FOLLOWED = 3
"""Most imports (``from .module import Name``) through which a name is followed to its definition."""


def about(offer: Offer) -> str:
    """Return the first sentence of an offer's docstring; empty where it has none, or its source cannot be read."""
    if isinstance(offer.target, str):
        module, _, name = offer.target.partition(":")
        text = _documented(module, name.partition(".")[0], FOLLOWED)
    else:
        text = getattr(offer.target, "help", None) or inspect.getdoc(offer.target) or ""
    sentence = re.sub(r"^[A-Z]+-[A-Z0-9-]+: ", "", first_sentence(text))  # without a rule's id
    return sentence[:1].upper() + sentence[1:]


def first_sentence(text: str) -> str:
    """Return the first sentence of a text's first paragraph, on one line."""
    paragraph = " ".join(inspect.cleandoc(text).partition("\n\n")[0].split())
    return re.split(r"(?<=[.!?])\s+(?=[A-Z`(])", paragraph, maxsplit=1)[0]


def _documented(module: str, name: str, steps: int) -> str:
    """Return the docstring of a class or function; that of its module where the source does not define it."""
    tree = _parsed(module)
    if tree is None:
        return ""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return ast.get_docstring(node) or ""
        if isinstance(node, ast.ImportFrom) and steps:
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    return _documented(_imported_from(node, module), alias.name, steps - 1)
    return ast.get_docstring(tree) or ""


def _imported_from(node: ast.ImportFrom, module: str) -> str:
    """Return the absolute name of the module that an import in ``module`` names."""
    if not node.level:
        return node.module or ""
    package = module.split(".")
    spec = _found(module)
    if spec is None or spec.submodule_search_locations is None:  # one dot is the package that a plain module is in,
        package.pop()  # but in a package's own __init__ it is that package
    package = package[: len(package) - (node.level - 1)]
    return ".".join([*package, *filter(None, [node.module])])


@functools.cache
def _parsed(module: str) -> ast.Module | None:
    spec = _found(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    try:
        return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return None


def _found(module: str) -> ModuleSpec | None:
    """Find a module's spec. ``importlib.util.find_spec`` would import the packages that it is in."""
    places: Any = None
    spec = None
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:depth]), places)
        if spec is None or (depth < len(parts) and spec.submodule_search_locations is None):
            return None
        places = spec.submodule_search_locations
    return spec


# What is wrong with the installed plugins: everything is loaded, and every name resolved.


def examine(registry: Registry, reserved: Collection[str] = ()) -> Iterator[Problem]:
    """Every fault of every plugin. ``reserved``: the commands that are align's own."""
    for kind in KINDS:
        for name, offers in registry.offers(kind).items():
            if len(offers) > 1:
                yield Problem(f"{kind} {name}", clash(offers), "uninstall one of them")
            for offer in offers:
                yield from _faults(offer)
    for name in set(registry.names("command")) & set(reserved):
        for offer in registry.offers("command")[name]:
            yield Problem(
                f"plugin {offer.plugin}", f"its command {name!r} is never reached: align has its own", "rename it"
            )
    for plugin in registry.hooks.plugins():
        for what, why in plugin.broken.items():
            frames = [line.strip() for line in plugin.trace.splitlines() if line.lstrip().startswith("File ")]
            failed = "fails to load" if what == "load" else f"fails to register its {what}s"
            yield Problem(f"plugin {plugin}", f"{failed}: {why}", frames[-1] if frames else "")


def _faults(offer: Offer) -> Iterator[Problem]:
    try:
        thing = offer.resolve()
    except AlignError as error:
        yield from error.problems
        return
    if KINDS[offer.kind].configured:
        for name, field in config_of(thing).model_fields.items():
            if not field.description and isinstance(thing, type):
                what = f"setting {name!r} of {offer.kind} {offer.name!r} has no description"
                yield Problem(f"plugin {offer.plugin}", what, "write a docstring under the field", level="warning")
