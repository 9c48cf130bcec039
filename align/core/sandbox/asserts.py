"""Asserts as HumanEval and MBPP write them, read without running them: one call, and constants to compare it with.

assert f(1, [2]) == 3          assert 3 == f(1)             assert f(1) is None
assert f(1)                    assert not f(1)              assert set(f(1)) == {1, 2}
assert abs(f(1) - 0.5) < 1e-6  assert math.isclose(f(1), 0.5, rel_tol=1e-3)
"""

from __future__ import annotations

import ast
import math
import operator
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

from align.core.sandbox.sandbox_runtime.harness import BUILTINS

SIZE = 100_000
"""Most items, characters or bits that a constant's arithmetic may make."""
MOST = sys.float_info.max
BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
}  # fmt: skip
MADE: dict[str, Callable[..., Any]] = {
    f.__name__: f for f in (set, frozenset, tuple, list, sorted, float, dict, complex)
}
NUMBER = (int, float, complex)


_PARSER = Lock()
"""Held while a text is parsed: CPython 3.11 counts the depth of syntax trees once for all threads, and two of them that
build a tree at a time raise SystemError."""


class UnusableTest(Exception):
    """A test that cannot be used; says why."""


@dataclass(frozen=True, slots=True)
class Assert:
    """A call, the builtins around it with their further arguments, and its verdict: expected, rule, tolerance."""

    function: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    wraps: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    verdict: tuple[Any, Any, float | None] = (True, "truth", None)


def statements(text: str) -> list[ast.Assert]:
    """The asserts of a Python text, by themselves or in HumanEval's ``check(candidate)``. Raises UnusableTest."""
    try:
        with _PARSER:
            tree = ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise UnusableTest(f"is not Python: {error}") from error
    found: list[ast.Assert] = []
    for node in tree.body:
        body = node.body if isinstance(node, ast.FunctionDef) and node.name == "check" else [node]
        for statement in body:
            if isinstance(statement, ast.Assert):
                found.append(statement)
            elif not _harmless(statement):
                raise UnusableTest(f"has a line that is no assert: {ast.unparse(statement)[:80]}")
    if not found:
        raise UnusableTest("has no assert")
    return found


def _harmless(node: ast.stmt) -> bool:
    """Imports (never executed), a docstring, ``pass``, HumanEval's METADATA, the call of ``check`` itself."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) or ast.unparse(node).startswith("check(")
    metadata = isinstance(node, ast.Assign) and ast.unparse(node).startswith("METADATA = ")
    return metadata or isinstance(node, ast.Pass | ast.Import | ast.ImportFrom)


def read_assert(statement: ast.Assert) -> Assert:
    """Return the call and the check of one assert. Raises UnusableTest where it is of no known form."""
    test = statement.test
    if isinstance(test, ast.Constant):
        raise UnusableTest(f"asserts a constant: {ast.unparse(statement)[:80]}")
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return replace(_call(test.operand), verdict=(False, "truth", None))
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        return _compared(test.left, test.ops[0], test.comparators[0])
    if isinstance(test, ast.Call) and ast.unparse(test.func) in ("math.isclose", "isclose") and len(test.args) == 2:
        expected, limits = _number(test.args[1]), {word.arg: _number(word.value) for word in test.keywords}
        near = max(limits.get("rel_tol", 1e-9) * abs(expected), limits.get("abs_tol", 0.0))
        return replace(_call(test.args[0]), verdict=(expected, "near", near))
    return _call(test)


def _compared(left: ast.expr, how: ast.cmpop, right: ast.expr) -> Assert:
    if isinstance(how, ast.Lt | ast.LtE) and isinstance(left, ast.Call) and ast.unparse(left.func) == "abs":
        inner = left.args[0] if len(left.args) == 1 else None
        if isinstance(inner, ast.BinOp) and isinstance(inner.op, ast.Sub):
            call, expected = (inner.right, inner.left) if _is_literal(inner.left) else (inner.left, inner.right)
            return replace(_call(call), verdict=(_number(expected), "near", _number(right)))
    if isinstance(how, ast.Eq | ast.Is):
        call, expected = (right, left) if _is_literal(left) else (left, right)
        value = literal(expected)
        if isinstance(how, ast.Is) and value is not None and not isinstance(value, bool):
            raise UnusableTest("compares with `is` what is neither None, True nor False")
        return replace(_call(call), verdict=(value, "is" if isinstance(how, ast.Is) else "python", None))
    raise UnusableTest(f"compares otherwise than ==: {ast.unparse(left)[:60]} ...")


def _call(node: ast.expr) -> Assert:
    """``f(constants)``, ``Class().f(constants)``, or one of these within a builtin such as ``set`` or ``round``."""
    if not isinstance(node, ast.Call) or any(word.arg is None for word in node.keywords):
        raise UnusableTest(f"is no call with constants: {ast.unparse(node)[:80]}")
    if (
        isinstance(node.func, ast.Name)
        and node.func.id in BUILTINS
        and node.args
        and not node.keywords
        and not _is_literal(node.args[0])
    ):
        inner = _call(node.args[0])
        return replace(inner, wraps=(*inner.wraps, (ast.unparse(node.func), tuple(literal(a) for a in node.args[1:]))))
    name = ast.unparse(node.func).replace("().", ".")
    if not all(part.isidentifier() for part in name.split(".")):
        raise UnusableTest(f"is no call of a function by its name: {ast.unparse(node)[:80]}")
    args = tuple(literal(argument) for argument in node.args)
    return Assert(name, args, {str(word.arg): literal(word.value) for word in node.keywords})


def _number(node: ast.expr) -> float:
    value = literal(node)
    if not isinstance(value, int | float) or abs(value) > MOST:
        raise UnusableTest(f"has {ast.unparse(node)[:80]} where a number has to be")
    return float(value)


def _is_literal(node: ast.expr) -> bool:
    try:
        literal(node)
    except UnusableTest:
        return False
    return True


def literal(node: ast.expr) -> Any:
    """A constant expression's value: literals, arithmetic of bounded size, ``set(..)``, ``float("inf")``."""
    match node:
        case ast.Constant(value=value) if value is not Ellipsis:
            return value
        case ast.Tuple(elts=items):
            return tuple(map(literal, items))
        case ast.List(elts=items):
            return [literal(item) for item in items]
        case ast.Set(elts=items):
            return _made(set, [[literal(item) for item in items]])
        case ast.Dict(keys=keys, values=values) if all(keys):
            return _made(dict, [[(literal(k), literal(v)) for k, v in zip(keys, values, strict=True) if k]])
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            number = literal(operand)
            if isinstance(number, NUMBER):
                return -number if isinstance(sign, ast.USub) else +number
        case ast.BinOp(left=left, op=op, right=right) if type(op) in BINARY:
            return _arithmetic(literal(left), op, literal(right))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in MADE:
            return _made(MADE[name], [literal(argument) for argument in args])
        case ast.Attribute(value=ast.Name(id="math"), attr="pi" | "e" | "inf" | "nan" | "tau" as name):
            return getattr(math, name)
    raise UnusableTest(f"has a value that is no constant: {ast.unparse(node)[:80]}")


def _arithmetic(left: Any, op: ast.operator, right: Any) -> Any:
    if isinstance(op, ast.Pow):
        size = left.bit_length() * abs(right) if isinstance(left, int) and isinstance(right, int) else 0
    elif isinstance(op, ast.Mult):
        times = [n for n in (left, right) if isinstance(n, int)]
        size = 0 if len(times) == 2 else max([0, *times]) * max(_size(left), _size(right))
    else:
        size = 0
    if size > SIZE or not _numbers_or_sequences(left, op, right):
        raise UnusableTest("has arithmetic that is too large or not of constants")
    return _made(BINARY[type(op)], [left, right])


def _numbers_or_sequences(left: Any, op: ast.operator, right: Any) -> bool:
    numbers = isinstance(left, NUMBER) and isinstance(right, NUMBER)
    return numbers or (isinstance(op, ast.Add | ast.Mult) and not isinstance(left, dict))


def _size(value: Any) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    return 1 + sum(map(_size, value)) if isinstance(value, list | tuple) else 1 if isinstance(value, NUMBER) else SIZE


def _made(function: Callable[..., Any], args: list[Any]) -> Any:
    try:
        return function(*args)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UnusableTest(f"has a constant that cannot be made: {error}") from error
