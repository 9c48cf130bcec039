"""Errors for users: the place, the fault, and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from align.schemas.text import stripped


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, with its place and fix.

    where: the place in the user's own terms (``run.yaml line 4: algorithm.beta``, ``train.jsonl:17``).
    what:  what is wrong there, as a sentence without a subject (``is -1; must be greater than 0``).
    fix:  what to do about it; may be empty where ``what`` says it already.
    level: an ``error`` stops a launch, a ``warning`` is printed and kept in the manifest.

    As text it is safe to print: control characters that rows, files or servers put into it are removed.
    """

    where: str
    what: str
    fix: str = ""
    level: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        lines = [self.where, f"    {self.what}"] if self.where else [self.what]
        if self.fix:
            lines.append(f"    {self.fix}")
        return stripped("\n".join(lines))


class AlignError(Exception):
    """A user's mistake or a machine's limit: printed without a traceback. Anything else is our bug.

    ``AlignError("what", "fix", where="where")`` for one problem, ``AlignError.gather(problems)`` for many.
    """

    def __init__(self, what: str, fix: str = "", *, where: str = "", problems: Sequence[Problem] = ()) -> None:
        self.problems: tuple[Problem, ...] = tuple(problems) or (Problem(where, what, fix),)
        super().__init__("\n".join(map(str, self.problems)))

    @classmethod
    def gather(cls, problems: Iterable[Problem]) -> AlignError:
        """One error out of many problems, in the order given."""
        found = tuple(problems)
        if not found:
            raise ValueError("gather() needs at least one problem")
        return cls("", problems=found)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``did you mean 'beta'?`` when a known word is near, else the known words, else nothing."""
    words = sorted(known)
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known: {', '.join(words)}" if words else ""
