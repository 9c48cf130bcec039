"""``humaneval``: functions completed from their docstrings, graded by asserts; HumanEval's format and its like."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from align import AlignError
from align.evals import Episode, Generate, Item, Result, load_rows
from align.plugins.evals.coding.programs import LONGEST, ProgramEval, last_code
from align.sandbox import Called, UnusableTest, read_checks
from align.settings import Sampling

REQUEST = """\
Complete this function. Answer with the whole function, its imports included, in one block between ``` fences.

```python
{prompt}
```"""
STOP = ["\nclass ", "\ndef ", "\n#", "\nif __name__", "\nprint(", "\n```"]
"""The place where a completion of a base model has left the function."""
RUN = "align_run_check"
"""The function that is called where a test can only be run together with the program."""


class HumanEval(ProgramEval):
    """Functions that pass their tests (Chen et al. 2107.03374).

    Rows: ``task_id, prompt`` (signature and docstring), ``entry_point`` (the function's name), ``test``
    (``def check(candidate)`` with asserts). Tests that are plain asserts are judged outside the sandbox, where a
    program cannot reach them; others run beside it, as they do everywhere else.
    """

    name: ClassVar[str] = "humaneval"

    class Config(ProgramEval.Config):
        """Settings in the suite file."""

        mode: Literal["chat", "complete"] = "chat"
        """``chat``: the model is asked for the function. ``complete``: it continues the prompt as a base model does."""

    config: Config

    def load(self) -> Sequence[Item]:
        """See ``Eval``."""
        self.open()
        return [_item(where, row) for where, row in load_rows(self.config.source)]

    def run(self, item: Item) -> Episode:
        """See ``Eval``. A chat reply without a block of code is wrong and not valid."""
        prompt, entry = item.columns["prompt"], item.columns["entry_point"]
        if self.config.mode == "complete":
            (reply,) = yield [Generate(prompt, self._sampling())]
            code: str | None = reply.text
            source = prompt + reply.text
        else:
            content = REQUEST.format(prompt=prompt.rstrip())
            (reply,) = yield [Generate([{"role": "user", "content": content}], self._sampling())]
            code = last_code(reply.text)
            source = joined(prompt, code or "", entry)
        if code is None:
            return Result(0.0, valid=False, error="has no block of code")
        if len(source) > LONGEST:
            return Result(0.0, extracted=code[:LONGEST])
        program, checks = self._graded_by(source, item.columns["test"], entry)
        future = self.submit(lambda sandbox: self.called(sandbox, program, checks))
        yield []  # the other completions of this round are submitted before this one's verdict is waited for
        verdict = future.result()
        return Result(float(verdict == "right"), {"timeout": float(verdict == "timeout")}, extracted=code)

    def _sampling(self) -> Sampling:
        stop = STOP if self.config.mode == "complete" else []
        return self.config.sampled(Sampling(temperature=0, max_completion_length=1024, stop=stop))

    def _graded_by(self, source: str, test: str, entry: str) -> tuple[str, list[Called]]:
        """Return the program to run and the calls that grade it, with the test in it where it has to be."""
        checks = checks_of(test, entry)
        if checks is not None:
            return source, checks
        (check,) = read_checks({"tests": [{"function": RUN, "input": [], "output": True}]})
        assert isinstance(check, Called)
        return f"{source}\n\n{test}\n\ndef {RUN}():\n    check({entry})\n    return True\n", [check]


def checks_of(test: str, entry: str) -> list[Called] | None:
    """Return a test as calls with expected results; None where it is more than plain asserts."""
    try:
        return [check for check in read_checks({"tests": [test], "entry_point": entry}) if isinstance(check, Called)]
    except UnusableTest:
        return None


def joined(prompt: str, code: str, entry: str) -> str:
    """Return the program of a prompt and a reply's code: a whole function after the prompt's, or the body of it.

    The prompt stays before the code for the sake of its imports and helpers; ending in a docstring, it is a function
    by itself.
    """
    if f"def {entry}" in code:
        return f"{prompt.rstrip()}\n\n\n{code}"
    return f"{prompt.rstrip()}\n{textwrap.indent(textwrap.dedent(code), '    ')}"


def _item(where: str, row: Mapping[str, Any]) -> Item:
    texts = {key: row.get(key) for key in ("task_id", "prompt", "entry_point", "test")}
    if lacking := [key for key, value in texts.items() if not isinstance(value, str) or not value.strip()]:
        raise AlignError(f"is no task of HumanEval: it lacks {', '.join(lacking)}", where=where)
    try:
        ast.parse(str(row["test"]))
    except (SyntaxError, ValueError) as error:
        raise AlignError(f"its test is not Python: {error}", where=where) from error
    if not str(row["entry_point"]).isidentifier():
        raise AlignError("its entry_point is no name", where=where)
    return Item(str(row["task_id"]), row["test"], columns=row)
