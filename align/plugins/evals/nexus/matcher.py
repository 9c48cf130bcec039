"""Calls compared as NexusBench compares them, without running anything: parsed, and bound to the functions' signatures.

The original executes stub functions of these signatures and compares the arguments that they saw.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter, Signature
from typing import Any

LONGEST = 2**16
"""Characters of a reply that are read."""


class Unreadable(Exception):
    """The text is no calls of the functions; says why."""


@dataclass(frozen=True, slots=True)
class Function:
    """A function on offer: its signature and its description. header: its ``def`` line without the colon."""

    header: str
    signature: Signature
    about: str


@dataclass(frozen=True)
class Bound:
    """A call with the value of every parameter, defaults included. Two are equal if all values look the same.

    Values are compared by type and ``repr``: 1 is neither True nor 1.0, and the keys of a dict have an order.
    """

    name: str
    arguments: Mapping[str, Any]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Bound) or self.name != other.name:
            return False
        if self.arguments.keys() != other.arguments.keys():
            return False
        return all(_alike(value, other.arguments[key]) for key, value in self.arguments.items())

    __hash__ = None  # type: ignore[assignment]


def _alike(value: Any, other: Any) -> bool:
    return type(value) is type(other) and repr(value) == repr(other)


def read_functions(source: str, prefix: str = "") -> dict[str, Function]:
    """Return the functions that a Python file defines at its top, by name; the file is parsed and never run.

    prefix: of the names that count. Raises Unreadable for what is not Python.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise Unreadable(f"is not Python: {error}") from error
    defined = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith(prefix)]
    return {
        node.name: Function(
            f"def {node.name}({ast.unparse(node.args)})",
            Signature(list(_parameters(node.args))),
            inspect.cleandoc(ast.get_docstring(node) or ""),
        )
        for node in defined
        if not node.name.startswith("_")
    }


def _parameters(given: ast.arguments) -> Iterator[Parameter]:
    """Yield a function's parameters in the order of a signature."""
    positional = [*given.posonlyargs, *given.args]
    defaults = [Parameter.empty] * (len(positional) - len(given.defaults)) + [_default(node) for node in given.defaults]
    for number, (argument, default) in enumerate(zip(positional, defaults, strict=True)):
        only = number < len(given.posonlyargs)
        yield Parameter(
            argument.arg, Parameter.POSITIONAL_ONLY if only else Parameter.POSITIONAL_OR_KEYWORD, default=default
        )
    if given.vararg:
        yield Parameter(given.vararg.arg, Parameter.VAR_POSITIONAL)
    for argument, node in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        default = Parameter.empty if node is None else _default(node)
        yield Parameter(argument.arg, Parameter.KEYWORD_ONLY, default=default)
    if given.kwarg:
        yield Parameter(given.kwarg.arg, Parameter.VAR_KEYWORD)


def _default(node: ast.expr) -> Any:
    """Return a default's value; one that is no literal stands as its text, alike on both sides."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


def read_calls(text: str, functions: Mapping[str, Function]) -> list[Bound]:
    """Return the calls of a text in the order in which Python would make them, inner ones first.

    Calls are separated by semicolons or lines. Raises Unreadable for all else.
    """
    if len(text) > LONGEST:
        raise Unreadable(f"has more than {LONGEST} characters")
    made: list[Bound] = []
    try:
        for statement in ast.parse(text.strip()).body:
            if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Call):
                raise Unreadable(f"has what is no call: {ast.unparse(statement)[:80]}")
            _value(statement.value, functions, made)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise Unreadable(f"is no call: {error}") from error
    return made


def _value(node: ast.expr, functions: Mapping[str, Function], made: list[Bound]) -> Any:
    """Return an expression's value; calls in it are added to ``made`` when their arguments are known."""
    match node:
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords) if name in functions:
            positional = [_value(argument, functions, made) for argument in args]
            if any(keyword.arg is None for keyword in keywords):
                raise Unreadable("unpacks a dict into arguments")
            named = {str(keyword.arg): _value(keyword.value, functions, made) for keyword in keywords}
            bound = functions[name].signature.bind(*positional, **named)
            bound.apply_defaults()
            made.append(Bound(name, bound.arguments))
            return made[-1]
        case ast.Call():
            raise Unreadable(f"calls {ast.unparse(node.func)[:80]}, which is not on offer")
        case ast.List(elts=items):
            return [_value(item, functions, made) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_value(item, functions, made) for item in items)
        case ast.Dict(keys=keys, values=values) if None not in keys:
            pairs: Sequence[Any] = list(zip(keys, values, strict=True))
            return {_value(key, functions, made): _value(value, functions, made) for key, value in pairs}
    return ast.literal_eval(node)
