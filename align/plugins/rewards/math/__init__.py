"""The math verifier. Its policy is a table in docs/math_verifier.md.

text --extract--> the one answer --notation--> one form --tree--> types --compare--> right or wrong

The leaves of a tree are numbers (numeral) and expressions (grammar, expression), compared exactly (exact, reals).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from align import Answer, Reward, Score
from align.plugins.rewards.math.compare import check, same
from align.plugins.rewards.math.extract import Found, answer_of
from align.plugins.rewards.math.notation import Unparsed, clean
from align.plugins.rewards.math.tree import Tree, read
from align.plugins.rewards.math.units import contradicts
from align.rewards import RewardContext

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
"""Equal pairs that need sympy, so that its import does not count against the time limit of the first answer."""


class Math(Reward):
    """1 for the right final answer and 0 for a wrong one, decided exactly.

    Runs in workers: expressions are bounded, and what is slow all the same costs its answer the score.
    """

    name = "math"
    seconds = 3.0

    class Config(Reward.Config):
        """Settings of the math verifier."""

        column: str = "solution"
        """The column with the gold answer: bare, in a ``\\boxed{}``, or after ``####``."""
        boxed: bool = False
        """Only an answer in a ``\\boxed{}`` counts; else "the answer is 7", ``#### 7``, or the bare answer do too."""
        bare_percent: bool = False
        """28 and 28% are the same."""
        unparsed: Annotated[float, Field(allow_inf_nan=False)] | None = 0.0
        """The score where no answer is found or it cannot be judged; null leaves it out."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.required_columns = (config.column,)  # type: ignore[misc]  # whatever its name is here

    def open(self, place: RewardContext) -> None:
        """Import sympy once for all workers."""
        for gold, answer in _WARM:
            assert self.verdict(gold, rf"\boxed{{{answer}}}").outcome == "right", (gold, answer)

    def unfit(self, columns: Mapping[str, Any]) -> str | None:
        """Return why a row's gold answer cannot be used; None where it can."""
        if lacking := super().unfit(columns):
            return lacking
        try:
            _gold(str(columns[self.config.column]))
        except Unparsed as error:
            return f"{self.config.column} {error}"
        return None

    def score(self, answers: Sequence[Answer]) -> Sequence[Score]:
        """Return a verdict on each answer, against its own gold."""
        return [self.verdict(str(answer.columns.get(self.config.column, "")), answer.text) for answer in answers]

    def verdict(self, gold: str, text: str) -> Score:
        """Judge one answer. An unfit gold is an ``error``: the answer is neither right nor wrong."""
        try:
            golds = _gold(gold)
        except Unparsed as error:
            return Score(None, "error", why=f"the gold answer {error}")
        try:
            found = answer_of(text, self.config.boxed)
            right = self._right(golds, found)
        except Unparsed as error:
            return Score(self.config.unparsed, "unparsed", why=f"the answer {error}")
        return Score(1.0, "right") if right else Score(0.0, "wrong")

    def _right(self, golds: Sequence[Gold], found: Found) -> bool:
        """Return whether the answer is right, and so is all that the text equates with it. Raises Unparsed."""
        forms = _forms(found)
        if self.config.bare_percent:
            golds, forms = [gold.without_percent() for gold in golds], [form.replace("%", "") for form in forms]
        # Each has at most two forms, with and without a percent sign (``_forms``).
        agreed = [gold for gold in golds if any(gold.agrees(form) for form in forms)]
        if not agreed and len(found.answers) > 1:  # one answer in several forms
            agreed = [gold for gold in golds if all(gold.agrees(clean(one)) for one in found.answers)]
        if agreed and not any(gold.agrees_with_all(found.restated) for gold in agreed):
            raise Unparsed("is followed by another one")
        return bool(agreed)


class Gold(NamedTuple):
    """A gold answer, cleaned, and as a tree."""

    written: str
    tree: Tree

    def agrees(self, answer: str, worked_out: bool = True) -> bool:
        """Compare a cleaned answer. worked_out: whether a number wants a number, not arithmetic. Raises Unparsed."""
        if _bare(answer) == _bare(self.written):  # a copy of the gold is right, even one that cannot be parsed
            return True
        return _choice(answer) == self.tree.text or same(self.tree, read(answer), worked_out)

    def agrees_with_all(self, restated: Sequence[str]) -> bool:
        """Return whether all values that a text equates with its answer equal this one, worked out or not."""
        return all(self.agrees(clean(one), worked_out=False) for one in restated)

    def without_percent(self) -> Gold:
        """50% as 50."""
        return _as_gold(self.written.replace("%", "")) if "%" in self.written else self


@lru_cache(maxsize=4096)
def _gold(text: str) -> tuple[Gold, ...]:
    """A gold answer, with and without a percent sign that stands outside its box. Raises Unparsed where it is none."""
    if len(text) > LONGEST_GOLD:
        raise Unparsed(f"is longer than {LONGEST_GOLD} characters")
    if "box" not in text and "####" not in text:
        return (_as_gold(clean(text)),)
    found = answer_of(text, boxed=False)
    first = _as_gold(clean(found.answers[0]))
    if len(found.answers) > 1 and all(first.agrees(clean(one)) for one in found.answers[1:]):
        return (first,)  # one answer in several forms
    if found.alternatives:
        raise Unparsed("gives several answers")
    return tuple(map(_as_gold, _forms(found)))


@lru_cache(maxsize=4096)
def _as_gold(written: str) -> Gold:
    try:
        tree = read(written)
        check(tree)
    except Unparsed:
        letter = _choice(written)  # ``(D) Alina`` is no mathematics, but a choice
        if letter is None:
            raise
        tree = Tree("words", letter)
    return Gold(written, tree)


def _forms(found: Found) -> list[str]:
    r"""The texts to compare: behind ``\boxed{28}`` a percent sign may count or not."""
    form = clean(found.joined)
    return [form, form + "%"] if found.percent and form[-1:].isdigit() else [form]


def _choice(text: str) -> str | None:
    """The letter of ``(A) 5`` and ``A. five``; None for anything else, and where another letter or a denial follows."""
    match = re.match(r"(?:\\text\{)?(?:\(([A-J])\)|([A-J])[.):](?![^ ]))", text)
    rest = text[match.end() :] if match else ""
    alone = not re.search(r",|\b[A-J]\b|^[}\s]*[/&|]", rest) and (_NEGATIVE.fullmatch(rest) or not contradicts(rest))
    return match[1] or match[2] if match and alone else None


def _bare(text: str) -> str:
    """Drop spaces, but for those next to digits and commas: 11, 111 and 11,111 differ in them."""
    return re.sub(r"(?<![\d,])\s+(?![\d,])", "", text)
