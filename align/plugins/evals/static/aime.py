"""AIME 2024 and 2025: competition problems whose answers are integers from 0 to 999."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import AliasChoices, Field

from align.evals import Episode, Generate, Item, Result, Row
from align.plugins.evals.static.samples import sample_metrics
from align.plugins.evals.static.static_eval import Published, StaticEval
from align.settings import Sampling


class AIMERow(Published):
    """A row of ``Maxwell-Jia/AIME_2024`` or ``math-ai/aime25``."""

    id: int | str = Field(validation_alias=AliasChoices("id", "ID"))
    problem: str = Field(validation_alias=AliasChoices("problem", "Problem"))
    answer: Annotated[int, Field(ge=0, le=999)] = Field(validation_alias=AliasChoices("answer", "Answer"))


class AIME(StaticEval):
    """Share of samples with the right integer (avg@k); with several samples also ``pass@k`` and ``maj@k``.

    30 problems: give ``samples: 16`` or more, since one greedy sample of each tells nothing.
    """

    name = "aime"
    domain = "math"

    class Config(StaticEval.Config):
        """Settings of AIME. data: a year's problems."""

        chat: bool = True
        """Send the prompt as one user message through the chat template; false: as plain text."""
        instruction: str = r"Solve the problem step by step. Its answer is an integer from 0 to 999; put it in \boxed{}"
        """Follows the problem in the prompt."""

    config: Config

    def load(self) -> Sequence[Item]:
        """Read the problems."""
        return [Item(str(row.id), row.answer, columns={"problem": row.problem}) for row in self.read(AIMERow)]

    def run(self, item: Item) -> Episode:
        """Generate a solution and compare its integer."""
        protocol = Sampling(temperature=0.6, top_p=0.95, max_completion_length=32768)
        prompt = self.content(f"{item.columns['problem'].strip()}\n\n{self.config.instruction}")
        (reply,) = yield [Generate(prompt, self.config.sampled(protocol))]
        number = final_integer(reply.text)
        if number is None:
            return Result(0.0, valid=False, error="no integer found")
        return Result(float(number == item.target), extracted=str(number))

    def aggregate(self, rows: Sequence[Row]) -> dict[str, float]:
        """Return the mean over all samples, and the metrics of several samples."""
        return {**super().aggregate(rows), **sample_metrics(rows)}


_NUMBER = r"(-?\d[\d,]*(?:\.0*)?)(?![\d.]*\d)"
"""An integer, with commas or ``.0``; ``73.5`` is none."""
_OPENING = r"[\s:*$(]*(?:\\(?:text|mathbf|\()\{?)?(?:[a-zA-Z+ ]+=\s*)?"
_WITHOUT_BOX = (
    re.compile(rf"(?i:answer)\s*\**\s*(?:is|:|=){_OPENING}{_NUMBER}"),
    re.compile(rf"\*\*{_OPENING}{_NUMBER}[\s$.]*\*\*"),
    re.compile(rf"\${_OPENING}{_NUMBER}\s*\$"),
)
"""An integer after "answer is", in bold type, as a formula."""
_ALONE = re.compile(rf"[\s$]*{_NUMBER}[\s$.]*")
_WRAPPED = re.compile(r"\\(?:text|textbf|mathbf|mathrm|boxed)\{([^{}]*)\}")
_DEGREES = re.compile(r"\^\{?\\circ\}?")


def final_integer(text: str) -> int | None:
    r"""Return the integer of the last ``\boxed{}``; without one the last after "answer is", in bold type, in a formula.

    A text that is nothing but an integer is its own answer. A box may hold ``073``, ``73.0``, ``\text{73}`` or
    ``m+n=73``; a box without an integer is no answer.
    """
    boxed = last_boxed(text)
    if boxed is not None:
        text = _plain(boxed).rpartition("=")[2]
    else:
        for rule in _WITHOUT_BOX:
            if numbers := rule.findall(text):
                return _integer(numbers[-1])
    alone = _ALONE.fullmatch(text)
    return _integer(alone[1]) if alone else None


def last_boxed(text: str) -> str | None:
    r"""Return what stands in the last ``\boxed{}`` that is closed, or after a ``\boxed `` without braces."""
    for found in reversed(list(re.finditer(r"\\(?:boxed|fbox)\s*(?:\{|(\w+))", text))):
        if found[1]:
            return found[1]
        depth = 1
        for place in range(found.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if depth == 0:
                return text[found.end() : place]
    return None


def _plain(formula: str) -> str:
    """Return a formula without degrees, thin spaces and commands that set its type."""
    formula = _DEGREES.sub("", formula)
    for space in (r"\,", r"\!", "{,}", r"\ "):
        formula = formula.replace(space, "")
    while (plain := _WRAPPED.sub(r"\1", formula)) != formula:
        formula = plain
    return formula


def _integer(digits: str) -> int:
    return int(digits.replace(",", "").partition(".")[0])
