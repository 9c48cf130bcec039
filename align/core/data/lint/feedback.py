"""Check preference pairs and labels: length bias, shared openings, give-away features, unbalanced labels."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from align.core.data.lint.finding import BottomKSample, Lint, LintFinding, Places, finding
from align.core.data.lint.row_flags import refuses
from align.core.data.lint.row_view import RowView, digest, words

ENOUGH = 30
"""Fewest pairs for which shares are reported: at 30 the standard error of a share is at most 9 points."""
LONGER = 0.7
"""The share of pairs with the longer answer chosen from which on length bias is reported. In UltraFeedback and HH-RLHF
it is about 0.55 to 0.65 (Singhal et al. 2023); Park et al. (2024) show DPO exploiting it."""
OPENING = 8
"""First words of the answers that are compared."""
SEPARATES = 0.95
"""The share of pairs from which on one feature makes them trivial to separate."""
LOOKED_AT = 2_000
"""Most pairs on which features are tried."""
WORDS = 200
"""Most words of an answer that are searched for words that give it away."""

FEATURES: Mapping[str, Callable[[str], float]] = {
    "length": len,
    "line breaks": lambda answer: answer.count("\n"),
    "list marks": lambda answer: len(re.findall(r"^[ \t]*(?:[-*•]|\d+[.)])[ \t]", answer, re.M)),
    "headings or bold": lambda answer: answer.count("**") + answer.count("\n#"),
    "blocks of code": lambda answer: answer.count("```"),
    "a capital first": lambda answer: answer[:1].isupper(),
    "a stop at the end": lambda answer: answer.rstrip()[-1:] in tuple(".!?。！？"),
    "question marks": lambda answer: answer.count("?"),
    "exclamation marks": lambda answer: answer.count("!"),
    "a refusal": lambda answer: refuses(answer.casefold()),
}


class PreferencePairs(Lint):
    """Checks of rows with a chosen and a rejected answer."""

    def __init__(self) -> None:
        self._chosen, self._rejected, self._rows = array("L"), array("L"), array("Q")
        self._same, self._opening, self._ties, self._margins = array("Q"), array("Q"), array("Q"), 0
        self._sample = BottomKSample[tuple[str, str]](LOOKED_AT)

    def see(self, row: RowView) -> None:
        """Compare the two answers of a row."""
        if row.record.kind != "preference" or len(row.normal_answers) != 2:
            return
        chosen, rejected = row.normal_answers
        first, second = chosen.split(), rejected.split()
        self._rows.append(row.number)
        self._chosen.append(len(first))
        self._rejected.append(len(second))
        if chosen == rejected:
            self._same.append(row.number)
        elif len(first) >= OPENING and first[:OPENING] == second[:OPENING]:
            self._opening.append(row.number)
        if row.record.margin is not None:
            self._margins += 1
            if row.record.margin <= 0:
                self._ties.append(row.number)
        answers = row.answers[0], row.answers[1]
        self._sample.offer(digest(row.normal_prompt, chosen, rejected), lambda: answers)

    def findings(self, places: Places) -> Iterator[LintFinding]:
        """Yield the findings about pairs."""
        count = len(self._rows)
        for id, rows in (("same-answers", self._same), ("same-opening", self._opening)):
            if rows:
                yield finding(id, places, rows, of=count, unit="pairs", n=OPENING)
        if self._ties:
            yield finding("ties", places, self._ties, of=self._margins, unit="margins")
        if count < ENOUGH:
            return
        chosen, rejected = np.array(self._chosen), np.array(self._rejected)
        longer, shorter = int((chosen > rejected).sum()), int((chosen < rejected).sum())
        if longer + shorter and not 1 - LONGER <= longer / (longer + shorter) <= LONGER:
            yield finding("length-bias", places, count=longer, of=longer + shorter, unit="pairs of unequal length",
                          chosen_mean=float(chosen.mean()), rejected_mean=float(rejected.mean()))  # fmt: skip
        pairs = list(self._sample)
        if len(pairs) >= ENOUGH and (best := separating(pairs)):
            feature, won = best
            yield finding("separable", places, count=won, of=len(pairs), unit="pairs", feature=feature)


def separating(pairs: Sequence[tuple[str, str]]) -> tuple[str, int] | None:
    """Return the feature that separates most pairs (chosen, rejected), and their number; None below SEPARATES."""
    won = Counter[str]()
    for chosen, rejected in pairs:
        for name, feature in FEATURES.items():
            one, other = feature(chosen), feature(rejected)
            if one != other:
                won[f"{name}, {'more' if one > other else 'less'} in the chosen one"] += 1
        in_chosen, in_rejected = (set(words(answer.casefold())[:WORDS]) for answer in (chosen, rejected))
        won.update(f"the word {word[:40]!a} in the chosen one only" for word in in_chosen - in_rejected)
        won.update(f"the word {word[:40]!a} in the rejected one only" for word in in_rejected - in_chosen)
    name, most = min(won.items(), key=lambda item: (-item[1], item[0]), default=("", 0))
    return (name, most) if most >= SEPARATES * len(pairs) else None


class LabelBalance(Lint):
    """Rows with one answer that is labelled good or bad: both labels must occur, in a bearable ratio."""

    BALANCED = (0.2, 0.8)
    """The share of good answers within which no weights are needed; about 1 to 4, which weights can still correct."""

    def __init__(self) -> None:
        self._good, self._all = 0, 0

    def see(self, row: RowView) -> None:
        """Count the label of a row."""
        if row.record.kind == "unpaired":
            self._all += 1
            self._good += bool(row.record.label)

    def findings(self, places: Places) -> Iterator[LintFinding]:
        """Yield a finding if there is only one label, or far more of one."""
        if not self._all:
            return
        share = self._good / self._all
        if share in (0.0, 1.0):
            yield finding("one-label", places, count=self._all, of=self._all, label="true" if share else "false")
        elif not self.BALANCED[0] <= share <= self.BALANCED[1]:
            yield finding("labels-unbalanced", places, count=self._good, of=self._all)
