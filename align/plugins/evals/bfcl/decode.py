"""Calls out of a model's text: Python syntax read with ``ast`` and never run, or the JSON of native tool calls."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from typing import Any

Call = dict[str, dict[Any, Any]]
"""One call: the function's name, and its arguments by name."""

LONGEST = 2**16
"""Characters of a reply that are read; parsing deeper and longer text could exhaust the stack."""
BITS = 2**14
"""Most bits of a number that constant arithmetic may make."""


class NoCalls(Exception):
    """The text cannot be read as calls; says why."""


def python_calls(text: str) -> list[Call]:
    """Return the calls of ``[f(a=1), g(b="x")]``; brackets at the ends may lack, and fences around it are dropped.

    A name that stands for a value becomes a string, as does a call without keywords; positional arguments are dropped
    (BFCL's rules). Raises NoCalls for all other text.
    """
    text = text.strip("`\n ")
    if len(text) > LONGEST:
        raise NoCalls(f"has more than {LONGEST} characters")
    opening = "" if text.startswith("[") else "["
    closing = "" if text.endswith("]") else "]"
    try:
        body = ast.parse(f"{opening}{text}{closing}".strip().strip("'"), mode="eval").body
        if isinstance(body, ast.Call):
            return [_call(body)]
        if not isinstance(body, ast.List | ast.Tuple | ast.Set):
            raise NoCalls("is no list of calls")
        return [_call(element) for element in body.elts]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError, OverflowError) as error:
        raise NoCalls(f"is no Python: {error}") from error


def _call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call):
        raise NoCalls(f"has what is no call: {ast.unparse(node)[:80]}")
    parts: list[str] = []
    function: ast.expr = node.func
    while isinstance(function, ast.Attribute):
        parts.append(function.attr)
        function = function.value
    if isinstance(function, ast.Name):
        parts.append(function.id)
    return {".".join(reversed(parts)): {keyword.arg: _value(keyword.value) for keyword in node.keywords}}


def _value(node: ast.expr | None) -> Any:
    """Return the value of an argument's expression; raises NoCalls where it has none without being run."""
    match node:
        case ast.Constant(value=value):
            return "..." if value is Ellipsis else value
        case ast.List(elts=items):
            return [_value(item) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_value(item) for item in items)
        case ast.Dict(keys=keys, values=values):
            return {_value(key): _value(value) for key, value in zip(keys, values, strict=True)}
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            number = _value(operand)
            if isinstance(number, int | float | complex):
                return -number if isinstance(sign, ast.USub) else +number
        case ast.BinOp(left=left, op=op, right=right):
            return _arithmetic(_value(left), op, _value(right))
        case ast.Name(id=name):
            return name
        case ast.Call(keywords=[]):
            return ast.unparse(node)
        case ast.Call():
            return _call(node)
        case ast.Subscript(value=value, slice=index):
            return f"{ast.unparse(value)}[{ast.unparse(index)}]"
    raise NoCalls("has a value that is no constant")


def _arithmetic(left: Any, op: ast.operator, right: Any) -> Any:
    """Return the value of a sum or product of numbers (``2 * 60``), within bounds."""
    numbers = isinstance(left, int | float) and isinstance(right, int | float)
    if not numbers or (isinstance(left, int) and left.bit_length() > BITS):
        raise NoCalls("has arithmetic of what are no numbers")
    try:
        match op:
            case ast.Add():
                return left + right
            case ast.Sub():
                return left - right
            case ast.Mult():
                return left * right
            case ast.Div():
                return left / right
            case ast.FloorDiv():
                return left // right
            case ast.Mod():
                return left % right
            case ast.Pow() if abs(right) * max(1, int(abs(left)).bit_length()) <= BITS:
                return left**right
    except ArithmeticError as error:
        raise NoCalls(f"has arithmetic that fails: {error}") from error
    raise NoCalls("has arithmetic that is too large or of another kind")


def tool_calls(text: str) -> list[Call]:
    """Return the calls of a reply in a chat template's own form, or else in Python's.

    Templates differ in the marks around a call and agree in its JSON: ``{"name": ..., "arguments": {...}}``
    (``parameters`` in Llama's, and the arguments as text in OpenAI's). Raises NoCalls where there is none.
    """
    if len(text) > LONGEST:
        raise NoCalls(f"has more than {LONGEST} characters")
    found = [call for value in _json_values(text) for call in _named_calls(value)]
    return found or python_calls(text)


def _json_values(text: str) -> Iterator[Any]:
    """Yield each JSON object or array in a text, outermost ones only."""
    decoder = json.JSONDecoder()
    place = 0
    while (starts := [at for mark in "{[" if (at := text.find(mark, place)) >= 0]) != []:
        place = min(starts)
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            place += 1
            continue
        yield value


def _named_calls(value: Any) -> Iterator[Call]:
    for each in value if isinstance(value, list) else [value]:
        if not isinstance(each, dict):
            continue
        function = each.get("function")
        inner = function if isinstance(function, dict) else each
        arguments = inner.get("arguments", inner.get("parameters"))
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError):
                continue
        if isinstance(inner.get("name"), str) and isinstance(arguments, dict):
            yield {inner["name"]: arguments}
