"""``livecodebench``: code generation on contest problems from a window of dates, graded by all of their tests."""

from __future__ import annotations

import base64
import binascii
import json
import pickletools
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from typing import Any, ClassVar

from align import AlignError
from align.evals import Episode, Generate, Item, Result, load_rows, sha
from align.plugins.evals.coding.programs import LONGEST, ProgramEval, Verdict, last_code
from align.sandbox import Called, Check, Piped, Sandbox, read_checks
from align.settings import Sampling

LARGEST = 2**28
"""Bytes of one problem's hidden tests when unpacked; the largest published ones stay below."""
_STARRED = (
    "string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics", "itertools",
    "functools", "operator", "io", "sys", "json", "typing", "builtins",
)  # fmt: skip
_NAMED = tuple(name for name in _STARRED if name != "builtins")
PRELUDE = (
    "".join(f"from {name} import *\n" for name in _STARRED)
    + "".join(f"import {name}\n" for name in _NAMED)
    + "sys.setrecursionlimit(50_000)\n"
)
"""Imports that contest sites put before a program. builtins come last: operator and math have a pow and abs too."""

SYSTEM = "You solve programming problems in Python. Your program must be correct, complete and fast enough."
STARTER = """\
Fill in this starter code, and answer with all of it in one block between ``` fences:

```python
{starter}
```"""
STDIN = """\
Read the input from standard input and write the answer to standard output. Do not print anything else. Answer with the
whole program in one block between ``` fences."""


class LiveCodeBench(ProgramEval):
    """Problems of LiveCodeBench (2403.07974) that a program solves if it passes every public and hidden test.

    Published files: ``livecodebench/code_generation_lite`` (test.jsonl to test6.jsonl).
    """

    name: ClassVar[str] = "livecodebench"

    class Config(ProgramEval.Config):
        """Settings in the suite file."""

        start_date: date | None = None
        """First day of the contests; set it after the model's training data ends, so that none of them is in it."""
        end_date: date | None = None
        """Last day of the contests."""

    config: Config

    def load(self) -> Sequence[Item]:
        """See ``Eval``. All tests are unpacked once, so that broken ones stop it before anything is generated."""
        self.open()
        rows = [(where, row) for where, row in load_rows(self.config.source) if self._in_window(where, row)]
        return [_item(where, row) for where, row in rows]

    def _in_window(self, where: str, row: Mapping[str, Any]) -> bool:
        try:
            day = _date(row.get("contest_date"))
        except (TypeError, ValueError) as error:
            raise AlignError("its `contest_date` is no ISO date", where=where) from error
        start, end = self.config.start_date, self.config.end_date
        return (start is None or start <= day) and (end is None or day <= end)

    def run(self, item: Item) -> Episode:
        """See ``Eval``. A reply without a block of code is wrong and not valid."""
        (reply,) = yield [Generate(prompt_of(item.columns), self.config.sampled(DEFAULT))]
        code = last_code(reply.text)
        if code is None:
            return Result(0.0, valid=False, error="has no block of code")
        if len(code) > LONGEST:
            return Result(0.0, extracted=code[:LONGEST])
        future = self.submit(lambda sandbox: self._grade(sandbox, PRELUDE + code, tests_of(item.id, item.columns)))
        yield []  # the other completions of this round are submitted before this one's verdict is waited for
        verdict = future.result()
        return Result(float(verdict == "right"), {"timeout": float(verdict == "timeout")}, extracted=code)

    def _grade(self, sandbox: Sandbox, source: str, checks: Sequence[Check]) -> Verdict:
        """Run the tests until one fails, each in a process with its own time."""
        for check in checks:
            verdict = self._passes(sandbox, source, check)
            if verdict != "right":
                return verdict
        return "right"

    def _passes(self, sandbox: Sandbox, source: str, check: Check) -> Verdict:
        if isinstance(check, Called):
            return self.called(sandbox, source, [check])
        until = time.monotonic() + self.config.seconds
        run = sandbox.program(source, check.stdin, until, 2 * len(check.stdout))
        if run.stopped == "time":
            return "timeout"
        right = not run.stopped and same_output(run.output.decode(errors="replace"), check.stdout)
        return "right" if right else "wrong"

    def as_compared(self, tree: Any) -> Any:
        """Return a tuple as a list; what it holds keeps its types, as in the published comparison."""
        return ["list", *tree[1:]] if isinstance(tree, list) and tree[:1] == ["tuple"] else tree


DEFAULT = Sampling(temperature=0.2, top_p=0.95, max_completion_length=2000)
"""The protocol's sampling, of 10 samples a problem."""


def prompt_of(columns: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the messages of a problem, in our own wording."""
    starter = columns.get("starter_code") or ""
    task = STARTER.format(starter=starter) if starter.strip() else STDIN
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": f"# Problem\n\n{columns['question_content']}\n\n# Answer\n\n{task}"},
    ]


def _date(text: Any) -> date:
    return datetime.fromisoformat(text).date()


def _item(where: str, row: Mapping[str, Any]) -> Item:
    id = row.get("question_id")
    if not isinstance(id, str | int) or not isinstance(row.get("question_content"), str):
        fix = "it needs question_id, question_content, contest_date, public_test_cases and private_test_cases"
        raise AlignError("is no problem of LiveCodeBench", fix, where=where)
    count = len(tests_of(where, row))
    # The tests themselves take up to megabytes, and the target is written into every row: their hash stands for them.
    target = {"tests": count, "sha": sha([row.get("public_test_cases"), row.get("private_test_cases")])}
    tags = tuple(str(row[key]) for key in ("difficulty", "platform") if row.get(key))
    return Item(str(id), target, columns=row, tags=tags)


def tests_of(where: str, row: Mapping[str, Any]) -> list[Check]:
    """Return the public and hidden tests of a problem. Raises AlignError where they are of another form."""
    try:
        metadata = json.loads(row.get("metadata") or "{}")
        given = [
            *json.loads(row.get("public_test_cases") or "[]"),
            *hidden_tests(row.get("private_test_cases") or "[]"),
        ]
        found = [_check(test, metadata.get("func_name")) for test in given]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise AlignError(f"has tests of another form: {error}", where=where) from error
    if not found:
        raise AlignError("has no tests", where=where)
    return found


def _check(test: Mapping[str, Any], function: str | None) -> Check:
    if test["testtype"] == "stdin":
        return Piped(test["input"], test["output"])
    if test["testtype"] != "functional" or not function:
        raise ValueError("a test is neither stdin nor functional with metadata.func_name")
    arguments = [json.loads(line) for line in test["input"].split("\n")]
    expected = json.loads(test["output"])
    row = {"tests": [{"function": f"Solution.{function}", "input": arguments, "output": expected}]}
    (check,) = read_checks(row)
    assert isinstance(check, Called)
    return replace(check, rule="python", tolerance=0.0)


def hidden_tests(text: str) -> list[Any]:
    """Return the hidden tests: JSON, or JSON in a pickled string, compressed, in base64.

    A pickle is a program; this one is never run. Its operations are read one by one, and it is refused if it does
    anything but hold one string. Raises ValueError for all other content, and for more than ``LARGEST`` bytes.
    """
    try:
        tests = json.loads(text)
    except ValueError:
        tests = json.loads(pickled_string(unpacked(text)))
    if not isinstance(tests, list):
        raise ValueError("hidden tests are no list")
    return tests


def unpacked(text: str) -> bytes:
    """Return compressed bytes in base64 unpacked. Raises ValueError for others and for more than ``LARGEST`` bytes."""
    try:
        engine = zlib.decompressobj()
        data = engine.decompress(base64.b64decode(text, validate=True), LARGEST)
    except (zlib.error, binascii.Error) as error:
        raise ValueError(f"hidden tests cannot be unpacked: {error}") from error
    if not engine.eof:
        raise ValueError(f"hidden tests are cut off, or unpack to more than {LARGEST >> 20} MiB")
    return data


_HOLDING = ("PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT", "STOP")
_STRINGS = ("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8")


def pickled_string(data: bytes) -> str:
    """Return the string that a pickle holds, without unpickling. Raises ValueError where it is anything else."""
    found: list[str] = []
    for operation, argument, _ in pickletools.genops(data):
        if operation.name in _STRINGS:
            found.append(str(argument))
        elif operation.name not in _HOLDING:
            raise ValueError(f"hidden tests are a pickle that holds more than a string ({operation.name})")
    if len(found) != 1:
        raise ValueError("hidden tests are a pickle that holds no single string")
    return found[0]


def same_output(printed: str, wanted: str) -> bool:
    """Return whether outputs agree: line by line without outer blanks, or number by number."""
    lines, others = _lines(printed), _lines(wanted)
    return len(lines) == len(others) and all(map(_same_line, lines, others))


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().split("\n")]


def _same_line(printed: str, wanted: str) -> bool:
    if printed == wanted:
        return True
    try:
        return [Decimal(word) for word in printed.split()] == [Decimal(word) for word in wanted.split()]
    except (ArithmeticError, ValueError):
        return False
