"""The harness around the model's code: runs a program, or calls its functions and reports what they returned.

It shares the process with that code, which can therefore read and forge everything here. The expected results are not
here, so forging a value is no better than returning it.
"""

from __future__ import annotations

import marshal
import os
import sys

from .values import encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Call = tuple[str, bytes, tuple[tuple[str, tuple[Any, ...]], ...]]
    """A function's dotted name, marshalled (args, kwargs), and what is around the call: names with further args."""

NAME = "answer"
BUILTINS: dict[str, Callable[[Any], Any]] = {
    f.__name__: f for f in (set, frozenset, sorted, tuple, list, len, sum, abs, round, str, int, float, bool)
}
"""Functions that may stand around a call in an assert."""


def program(source: str) -> None:
    """Run the code as a script; its standard streams are what counts."""
    module = _module("__main__")
    exec(compile(source, NAME, "exec"), module)


def calls(source: str, wanted: list[Call], nonce: str, channel: int) -> None:
    """One line for loading the code and one for every call: ``NONCE [tag, content]`` or ``NONCE ["raised", why]``."""
    module: dict[str, Any] = _module(NAME)
    loaded = outcome(lambda: exec(compile(source, NAME, "exec"), module))
    _write(channel, f"{nonce} {loaded}\n")
    for call in wanted:
        _write(channel, f"{nonce} {outcome(lambda call=call: perform(module, call))}\n")  # type: ignore[misc]


def outcome(work: Callable[[], object]) -> str:
    """Return the result of ``work`` as JSON, or ``["raised", type]``."""
    try:
        return encode(work())
    except BaseException as error:
        return encode(error_name(error)).replace('"str"', '"raised"', 1)


def error_name(error: BaseException) -> str:
    """Return the name of an exception's type, read past any ``__name__`` that the code has put in its way."""
    return str(type.__dict__["__name__"].__get__(type(error)))[:100]


def perform(module: dict[str, Any], call: Call) -> Any:
    """Make one call, with fresh copies of its arguments; a class on the way to a method is instantiated."""
    name, marshalled, wraps = call
    first, *rest = name.split(".")
    function = module[first]
    for attribute in rest:
        function = getattr(function() if isinstance(function, type) else function, attribute)
    args, kwargs = marshal.loads(marshalled)
    value = function(*args, **kwargs)
    for wrap, further in wraps:
        value = BUILTINS[wrap](value, *further)
    return value


def _module(name: str) -> dict[str, Any]:
    module = type(sys)(name)
    sys.modules[name] = module
    return vars(module)


def _write(channel: int, line: str) -> None:
    data = line.encode()
    while data:
        data = data[os.write(channel, data) :]
