"""A row's tests: calls or inputs, and the expected results. The results never enter the sandbox."""

from __future__ import annotations

import json
import marshal
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from align.core.sandbox.asserts import UnusableTest, read_assert, statements
from align.core.sandbox.sandbox_runtime.values import encode

if TYPE_CHECKING:
    from align.core.sandbox.sandbox_runtime.harness import Call

NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True, slots=True)
class Called:
    """A call and what has to come of it.

    rule: ``json``: equal with JSON's eyes (a tuple is a list; true is not 1; 2 is a 2.0 but 2.0 is no 2).
    ``python``: what ``==`` says of Python's own types. ``is``: the very value (None, True, False). ``truth``: true or
    false as ``expected`` says. ``near``: a number at most ``tolerance`` away. tolerance: None for the reward's own.
    """

    call: Call
    expected: Any
    rule: Literal["json", "python", "is", "truth", "near"]
    tolerance: float | None = None

    @property
    def room(self) -> int:
        """Bytes of output that its result may take in addition to what every run may write."""
        return 4 * len(encode(self.expected))


@dataclass(frozen=True, slots=True)
class Piped:
    """A script's standard input, and the standard output that it has to write."""

    stdin: str
    stdout: str


Check: TypeAlias = Called | Piped
"""One test of either kind."""


def read_checks(columns: Mapping[str, Any]) -> list[Check]:
    """Return the tests in a row's ``tests``: a list, the same as JSON text, or Python text of asserts.

    ``entry_point`` names the function where a test does not. Raises UnusableTest.
    """
    tests, entry = columns.get("tests"), columns.get("entry_point")
    if isinstance(tests, str):
        try:
            tests = json.loads(tests)
        except (ValueError, RecursionError):
            tests = [tests]
    if isinstance(tests, dict | str):
        tests = [tests]
    if not isinstance(tests, list | tuple) or not tests:
        raise UnusableTest("its `tests` is not a list of tests")
    checks: list[Check] = []
    for number, test in enumerate(tests, 1):
        try:
            checks += _read(test, entry if isinstance(entry, str) else None)
        except (UnusableTest, RecursionError, MemoryError) as error:
            raise UnusableTest(f"its test {number} {str(error) or 'is nested too deeply'}") from error
    return checks


def _read(test: Any, entry: str | None) -> list[Check]:
    if isinstance(test, str):
        read = [read_assert(statement) for statement in statements(test)]
        return [Called(_call(_named(a.function, entry), a.args, a.kwargs, a.wraps), *a.verdict) for a in read]
    keys = {key for key, value in test.items() if value is not None} if isinstance(test, dict) else set()
    if keys == {"stdin", "stdout"} and isinstance(test["stdin"], str) and isinstance(test["stdout"], str):
        return [Piped(test["stdin"], test["stdout"])]
    if "input" in keys and keys <= {"input", "output", "function"} and "output" in test:
        if not isinstance(test["input"], list):
            raise UnusableTest("has an `input` that is not the list of the function's arguments")
        name = test.get("function") or entry
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise UnusableTest("names no `function`, and the row has no `entry_point`")
        return [Called(_call(name, tuple(test["input"])), test["output"], "json")]
    raise UnusableTest("is none of {input, output, function}, {stdin, stdout} (texts) and 'assert f(1) == 2'")


def _named(name: str, entry: str | None) -> str:
    """Return the function's name: HumanEval's tests call it ``candidate``, and ``entry_point`` has its own."""
    return entry if name == "candidate" and entry and NAME.fullmatch(entry) else name


def _call(name: str, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None, wraps: Any = ()) -> Call:
    return name, marshal.dumps((args, kwargs or {})), wraps
