"""BFCL's AST checker for Python: the rules by which a call is compared with the answers that are allowed.

Written from the rules; ``benchmarks/bfcl_parity.py`` compares its verdicts with those of bfcl-eval's own.
An allowed answer is a mapping of parameters to lists of allowed values, in which "" says that it may be left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Function = Mapping[str, Any]
"""A function's description: name, description, parameters (properties with their types, and those required)."""
Answer = Mapping[str, Mapping[str, Sequence[Any]]]
"""The name of the function to call, and the allowed values of its parameters."""

PYTHON_TYPES: Mapping[str, type[Any]] = {
    "string": str,
    "integer": int,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
    "any": str,
}
_IGNORED = re.compile(r"[ ,./\-_*^]")

Rename = Callable[[str], str]


def dots_kept(name: str) -> str:
    """Return a function's name as the model has to write it in Python."""
    return name


def dots_replaced(name: str) -> str:
    """Return a function's name as a tool, whose names have no dots."""
    return name.replace(".", "_")


def check_calls(
    category: str, functions: Sequence[Function], calls: Sequence[Any], answers: Sequence[Answer], rename: Rename
) -> bool:
    """Return whether decoded calls are right.

    Several calls are matched in any order: each answer takes the first call that is left and fits it.
    """
    if len(calls) != len(answers):
        return False
    if "parallel" not in category:
        function = functions[0] if "multiple" not in category else described(functions, answers[0])
        return check_call(function, calls[0], answers[0], rename)
    left = list(calls)
    for answer in answers:
        function = described(functions, answer)
        fitting = [place for place, call in enumerate(left) if check_call(function, call, answer, rename)]
        if not fitting:
            return False
        del left[fitting[0]]
    return True


def described(functions: Sequence[Function], answer: Answer) -> Function:
    """Return the description of the function that an answer calls. Raises LookupError where there is none."""
    name = next(iter(answer))
    for function in functions:
        if function["name"] == name:
            return function
    raise LookupError(name)


def check_call(function: Function, call: Mapping[str, Any], answer: Answer, rename: Rename) -> bool:
    """Return whether one call is right: name, required and unexpected parameters, types, values, omissions."""
    allowed = next(iter(answer.values()))
    parameters = function["parameters"]
    given = call.get(rename(function["name"]))
    if given is None or any(name not in given for name in parameters.get("required", ())):
        return False
    for name, value in given.items():
        if name not in parameters["properties"] or name not in allowed:
            return False
        if not _right(value, parameters["properties"][name], allowed[name]):
            return False
    return all(name in given or "" in values for name, values in allowed.items())


def _right(value: Any, declared: Mapping[str, Any], allowed: Sequence[Any]) -> bool:
    kind = PYTHON_TYPES[declared["type"]]
    inner = PYTHON_TYPES[declared["items"]["type"]] if declared["type"] in ("array", "tuple") else None
    if declared["type"] == "tuple" and type(value) is tuple:
        value = list(value)
    if declared["type"] == "float" and type(value) is int:
        value = float(value)
    return right_value(value, kind, inner, allowed)


def right_value(value: Any, kind: type[Any], inner: type[Any] | None, allowed: Sequence[Any]) -> bool:
    """Return whether a value has its type (a list's items: theirs) and is one of those allowed."""
    fits, variable = _type_of(value, kind, inner, allowed)
    if not fits:
        return False
    if variable:
        return value in allowed
    if kind is dict:
        return _dict_allowed(value, allowed)
    if kind is list and inner is dict:
        return _dicts_allowed(value, allowed)
    if kind is str:
        return _plain(value) in [_plain(each) for each in allowed if type(each) is str]
    if kind is list:
        return _items(value) in [_items(each) for each in allowed if isinstance(each, list | str)]
    return value in allowed


def _type_of(value: Any, kind: type[Any], inner: type[Any] | None, allowed: Sequence[Any]) -> tuple[bool, bool]:
    """Return whether a value's type fits, and whether it is a variable's name.

    Answers that have another type than the one declared hold such names; a value of the answers' type fits too.
    """
    answers = next((type(each) for each in allowed if each != ""), None)
    if type(value) is kind:
        variable = answers is not None and answers is not kind
        if inner is None:
            return True, variable
        for option in allowed:
            if not isinstance(option, list) or all(_type_of(item, inner, None, option)[0] for item in value):
                return True, variable
        return False, False
    return answers is not None and type(value) is answers, True


def _plain(text: str) -> str:
    """Return a string without what is not compared: case, kind of quote, spaces and some punctuation."""
    return _IGNORED.sub("", text).lower().replace("'", '"')


def _plain_if_text(value: Any) -> Any:
    return _plain(value) if type(value) is str else value


def _items(values: Any) -> list[Any]:
    """Return a list's items as they are compared; none for what is no list, as some published answers have it."""
    return [_plain_if_text(each) for each in values] if isinstance(values, list | str) else []


def _dict_allowed(value: Any, allowed: Sequence[Any]) -> bool:
    """Return whether a dict is one of those allowed, key by key."""
    return any(isinstance(option, dict) and _same_dict(value, option) for option in allowed)


def _same_dict(value: Any, option: Mapping[Any, Sequence[Any]]) -> bool:
    if not isinstance(value, dict):
        return False
    for key, item in value.items():
        if key not in option or _plain_if_text(item) not in _items(option[key]):
            return False
    omittable = [key for key, values in option.items() if isinstance(values, list | str) and "" in values]
    return all(key in value or key in omittable for key in option)


def _dicts_allowed(value: Sequence[Any], allowed: Sequence[Any]) -> bool:
    """Return whether a list of dicts is one of those allowed, in order."""
    for option in allowed:
        same_length = isinstance(option, list | str) and len(value) == len(option)
        if same_length and all(_dict_allowed(item, [other]) for item, other in zip(value, option, strict=True)):
            return True
    return False
