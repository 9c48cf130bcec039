"""Comparison of what came out of the sandbox with what was expected.

The expected value leads: hostile trees are only read as far as they agree with it. No set or dict is built of
their content (hashes of numbers can be made to collide): their texts are compared.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from align.core.sandbox.checks import Called
from align.core.sandbox.sandbox_runtime.values import encode

DECIMAL = re.compile(r"[+-]?\d{1,400}(\.\d{0,400})?([eE][+-]?\d{1,4})?", re.ASCII)
FALSE = (None, 0, "", b"")


def passes(check: Called, tree: Any, tolerance: float) -> bool:
    """Return whether a call's result (``sandbox_runtime.values``; None: it gave none) is what the check wants."""
    try:
        return tree is not None and _passes(check, tree, tolerance)
    except (RecursionError, ValueError, OverflowError, TypeError, LookupError):
        return False  # a tree that the harness does not write


def _passes(check: Called, tree: Any, tolerance: float) -> bool:
    near = tolerance if check.tolerance is None else check.tolerance
    match check.rule:
        case "truth":
            return tree[0] != "raised" and _true(tree) is check.expected
        case "is":
            return bool(tree == json.loads(encode(check.expected)))
        case "near":
            value = scalar(tree)
            return isinstance(value, int | float | complex) and abs(value - check.expected) <= near
        case rule:
            return same(tree, check.expected, rule == "json", near)


def _true(tree: Any) -> bool:
    if tree[0] in ("list", "tuple", "set", "frozenset", "dict"):
        return len(tree[1]) > 0
    return tree[0] == "other" or scalar(tree) not in FALSE


def scalar(tree: Any) -> Any:
    """The value of a tree without branches; raises ValueError for others."""
    match tree:
        case ["none"]:
            return None
        case ["bool", bool(value)] | ["str", str(value)]:
            return value
        case ["int", str(text)]:
            return int(text, 16)
        case ["float", str(text)]:
            return float.fromhex(text)
        case ["complex", str(real), str(imaginary)]:
            return complex(float.fromhex(real), float.fromhex(imaginary))
        case ["bytes", str(text)]:
            return bytes.fromhex(text)
    raise ValueError(tree[0])


def same(tree: Any, expected: Any, as_json: bool, tolerance: float) -> bool:
    """Return whether a tree is a value, floats to the tolerance (relative and absolute)."""
    tag = tree[0]
    if isinstance(expected, list | tuple):
        fits = tag == "list" or (tag == "tuple" and as_json) if isinstance(expected, list) else tag == "tuple"
        return (
            fits
            and len(tree[1]) == len(expected)
            and all(same(item, other, as_json, tolerance) for item, other in zip(tree[1], expected, strict=True))
        )
    if isinstance(expected, set | frozenset):
        wanted = {key(json.loads(encode(item))) for item in expected}
        return tag in ("set", "frozenset") and len(tree[1]) == len(wanted) and {key(item) for item in tree[1]} == wanted
    if isinstance(expected, dict):
        if tag != "dict" or len(tree[1]) != len(expected):
            return False
        found = {key(k): value for k, value in tree[1]}
        pairs = [(key(json.loads(encode(k))), value) for k, value in expected.items()]
        return all(k in found and same(found[k], value, as_json, tolerance) for k, value in pairs)
    if tag in ("list", "tuple", "set", "frozenset", "dict", "other", "raised"):
        return False
    return _equal(scalar(tree), expected, as_json, tolerance)


def _equal(value: Any, expected: Any, as_json: bool, tolerance: float) -> bool:
    if not isinstance(expected, int | float | complex) or not isinstance(value, int | float | complex):
        return type(value) is type(expected) and bool(value == expected)
    if as_json:
        if isinstance(expected, bool) or isinstance(value, bool):
            return value is expected
        if isinstance(expected, int) and not isinstance(value, int):
            return False
        if expected != expected:
            return bool(value != value)
    if value == expected:
        return True
    if isinstance(value, int) and isinstance(expected, int):
        return False
    if isinstance(value, complex) or isinstance(expected, complex):
        return abs(value - expected) <= tolerance * max(1.0, abs(expected))
    return math.isclose(value, expected, rel_tol=tolerance, abs_tol=tolerance)


def key(tree: Any) -> str:
    """A text that two hashable values share exactly if Python finds them equal (1, 1.0 and True are)."""
    match tree:
        case ["bool" | "int" | "float", _]:
            number = scalar(tree)
            return f"number {int(number):#x}" if number == number // 1 else f"number {float(number).hex()}"
        case ["tuple", list(items)]:
            return f"tuple {len(items)} {[key(item) for item in items]}"
        case ["set" | "frozenset", list(items)]:
            return f"set {sorted(key(item) for item in items)}"
    return json.dumps(tree)


def prints(output: bytes, expected: str, tolerance: float) -> bool:
    """Return whether an output is the expected text: by lines without trailing blanks, fractions to the tolerance."""
    lines, wanted = _lines(output.decode(errors="replace")), _lines(expected)
    return len(lines) == len(wanted) and all(_line(*pair, tolerance) for pair in zip(lines, wanted, strict=True))


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _line(printed: str, wanted: str, tolerance: float) -> bool:
    if printed == wanted:
        return True
    words, others = printed.split(), wanted.split()
    return len(words) == len(others) and all(_word(*pair, tolerance) for pair in zip(words, others, strict=True))


def _word(printed: str, wanted: str, tolerance: float) -> bool:
    if printed == wanted:
        return True
    fractional = not wanted.lstrip("+-").isdigit()
    if not (fractional and DECIMAL.fullmatch(printed) and DECIMAL.fullmatch(wanted)):
        return False
    return math.isclose(float(printed), float(wanted), rel_tol=tolerance, abs_tol=tolerance)
