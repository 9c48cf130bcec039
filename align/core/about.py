"""What an offered thing is, in a line, without importing it: its docstring is read from its module's source."""

from __future__ import annotations

import ast
import functools
import inspect
import re
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from align.core.registry import Offer

FOLLOWED = 3
"""Modules through which a name is followed that is imported from another."""


def about(offer: Offer) -> str:
    """The first sentence of its docstring; empty where it has none, or its source cannot be had."""
    if isinstance(offer.target, str):
        module, _, name = offer.target.partition(":")
        text = _documented(module, name.partition(".")[0], FOLLOWED)
    else:
        text = getattr(offer.target, "help", None) or inspect.getdoc(offer.target) or ""
    said = re.sub(r"^[A-Z]+-[A-Z0-9-]+: ", "", first_sentence(text))  # a rule's id
    return said[:1].upper() + said[1:]


def first_sentence(text: str) -> str:
    """Up to the first full stop of the first paragraph, on one line."""
    paragraph = " ".join(inspect.cleandoc(text).partition("\n\n")[0].split())
    return re.split(r"(?<=[.!?])\s+(?=[A-Z`(])", paragraph, maxsplit=1)[0]


def _documented(module: str, name: str, steps: int) -> str:
    """The docstring of a name of a module, or that of the module."""
    tree = _parsed(module)
    if tree is None:
        return ""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return ast.get_docstring(node) or ""
        if isinstance(node, ast.ImportFrom) and steps:
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    above = module.split(".")[: -node.level] if node.level else []
                    return _documented(".".join([*above, *filter(None, [node.module])]), alias.name, steps - 1)
    return ast.get_docstring(tree) or ""


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
    """Where a module is; ``importlib.util.find_spec`` would import the packages above it."""
    places: Any = None
    spec = None
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:depth]), places)
        if spec is None or (depth < len(parts) and spec.submodule_search_locations is None):
            return None
        places = spec.submodule_search_locations
    return spec
