"""Whether a mathematical answer is right. The policy is a table in docs/math_verifier.md.

text --extract--> the one answer --notation--> one form --tree--> types --compare, leaf--> right or wrong
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any

from pydantic import Field

from align.core.rollout.reward import Answer, Place, Reward, Score
from align.plugins.rewards.math.compare import check, same
from align.plugins.rewards.math.extract import Unparsed, answers_of
from align.plugins.rewards.math.notation import clean
from align.plugins.rewards.math.tree import Tree, read
from align.plugins.rewards.math.units import contradicts

LONGEST_GOLD = 20_000
"""Characters of a solution."""

_NEGATIVE = re.compile(r"[\s}]*(?:\\text\{)?\s*(?:False|No|Never|Negative|Impossible|None(?: of [a-z ]+)?)[\s.}]*")
"""A choice's own words, which deny nothing: ``(B) No``."""

_WARM = (
    (r"x^2+2xy-\frac{y}{3}", r"x(x+2y)-\frac{1}{3}y"),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"),
    (r"\sin(2x)+\ln 2", r"\ln(2)+2\sin x\cos x"),
    (r"\frac{3\pi}{4}+e^{-x}", r"\frac{1}{e^x}+0.75\pi"),
    (r"\log_{2} 3", r"\frac{\ln 3}{\ln 2}"),
    (r"(x+1)(x-2)", "x^2-x-2"),
    ("2n+1", "1+2n"),
)
"""Equal pairs that exercise the parser, whose tables are filled as it goes, and sympy."""


class Math(Reward):
    """1 for the right final answer and 0 for a wrong one, decided by math-verify under a strict policy.

    Runs in workers: what reaches sympy is bounded, and what is slow all the same costs its answer the score.
    """

    name = "math"
    seconds = 3.0

    class Config(Reward.Config):
        """Settings of the math verifier."""

        column: str = "solution"
        """The column with the gold answer: bare, in a ``\\boxed{}``, or after ``####``."""
        boxed: bool = False
        """Only an answer in a ``\\boxed{}`` counts; else "the answer is 7", ``#### 7``, or the bare answer do too."""
        unparsed: Annotated[float, Field(allow_inf_nan=False)] | None = 0.0
        """The score where no answer is found or it cannot be judged; null leaves it out."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.needs = (config.column,)  # type: ignore[misc]  # whatever its name is here

    def open(self, place: Place) -> None:
        """Import sympy and build the parser's tables, once for all workers."""
        logging.getLogger("math_verify").setLevel(logging.ERROR)
        for gold, answer in _WARM:
            assert self.verdict(gold, rf"\boxed{{{answer}}}").outcome == "right", (gold, answer)

    def unfit(self, columns: Mapping[str, Any]) -> str | None:
        """Why a row's gold answer is none."""
        if lacking := super().unfit(columns):
            return lacking
        try:
            _gold(str(columns[self.config.column]))
        except Unparsed as error:
            return f"{self.config.column} {error}"
        return None

    def score(self, answers: Sequence[Answer]) -> Sequence[Score]:
        """A verdict on each answer, against its own gold."""
        return [self.verdict(str(answer.columns.get(self.config.column, "")), answer.text) for answer in answers]

    def verdict(self, gold: str, text: str) -> Score:
        """One answer. An unfit gold is an ``error``: neither right nor wrong can be said."""
        try:
            written, ours = _gold(gold)
        except Unparsed as error:
            return Score(None, "error", why=f"the gold answer {error}")
        try:
            first, *later = map(clean, answers_of(text, self.config.boxed))
            right = _agree(written, ours, first)
            if right and not all(_agree(written, ours, said) for said in later):
                raise Unparsed("is followed by another one")
        except Unparsed as error:
            return Score(self.config.unparsed, "unparsed", why=f"the answer {error}")
        return Score(1.0, "right") if right else Score(0.0, "wrong")


@lru_cache(maxsize=4096)
def _gold(text: str) -> tuple[str, Tree]:
    """A gold answer as written and as a tree. Raises Unparsed where it is none."""
    if len(text) > LONGEST_GOLD:
        raise Unparsed(f"is longer than {LONGEST_GOLD} characters")
    marked = "box" in text or "####" in text
    said = clean(answers_of(text, boxed=False)[0] if marked else text)
    tree = read(said)
    check(tree)
    return _bare(said), tree


def _agree(written: str, gold: Tree, said: str) -> bool:
    return _bare(said) == written or _choice(said) == gold.text or same(gold, read(said))


def _choice(text: str) -> str | None:
    """The letter of ``(A) 5`` and ``A. five``; None for anything else, and where another letter or a denial follows."""
    match = re.match(r"(?:\\text\{)?(?:\(([A-J])\)|([A-J])[.):](?![^ ]))", text)
    rest = text[match.end() :] if match else ""
    alone = not re.search(r",|\b[A-J]\b|^[}\s]*[/&|]", rest) and (_NEGATIVE.fullmatch(rest) or not contradicts(rest))
    return match[1] or match[2] if match and alone else None


def _bare(text: str) -> str:
    """Without spaces, but for those between digits."""
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)
