"""Parsing of a judge's reply, and win rates from verdicts. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

Winner = Literal["A", "B", "TIE"]

_THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_NUMBER = re.compile(r"[+-]?[0-9]{1,9}(?:\.[0-9]{1,9})?")


def _verdict(reply: str, tag: str) -> str | None:
    """Return the text of the one verdict line with the request's tag; None where there is none, or more than one."""
    line = rf"^[ \t>*_`#]*VERDICT {re.escape(tag)}[ \t]*:(.*)$"
    found = re.findall(line, _THOUGHT.sub("", reply), re.MULTILINE | re.IGNORECASE)
    return found[0].strip(" \t\r*_`") if len(found) == 1 else None


def read_mark(reply: str, tag: str, marks: tuple[float, float]) -> float | None:
    """Return the mark, within its range; None where there is not exactly one verdict, or it is not such a number."""
    verdict = _verdict(reply, tag)
    if verdict is None or not _NUMBER.fullmatch(verdict):
        return None
    mark = float(verdict)
    return mark if marks[0] <= mark <= marks[1] else None


def read_winner(reply: str, tag: str) -> Winner | None:
    """Return the winner; None where there is not exactly one verdict, or it names no answer."""
    match (_verdict(reply, tag) or "").upper():
        case "A":
            return "A"
        case "B":
            return "B"
        case "TIE":
            return "TIE"
    return None


@dataclass(frozen=True, slots=True)
class Standing:
    """The results of one answer against the others of its group: counts, and the win rate (a tie is half a win)."""

    wins: int = 0
    ties: int = 0
    losses: int = 0
    disagreed: int = 0
    """Ties because the two orders gave different verdicts."""

    @property
    def met(self) -> int:
        """Opponents with a verdict."""
        return self.wins + self.ties + self.losses

    @property
    def rate(self) -> float | None:
        """Mean win rate in [0, 1]; None without an opponent."""
        return (self.wins + self.ties / 2) / self.met if self.met else None


def standings(size: int, winners: Mapping[tuple[int, int], Winner | None]) -> list[Standing]:
    """Return the standings of ``size`` answers from ``winners``: (first shown, second shown) -> winner.

    One wins where both orders agree on it; verdicts that disagree are a tie; with either missing the two have not met.
    """
    counts = [[0, 0, 0, 0] for _ in range(size)]
    for i, j in combinations(range(size), 2):
        forth, back = winners.get((i, j)), winners.get((j, i))
        if forth is None or back is None:
            continue
        agreed = {("A", "B"): (0, 2), ("B", "A"): (2, 0)}.get((forth, back), (1, 1))
        for place, result in zip((i, j), agreed, strict=True):
            counts[place][result] += 1
            counts[place][3] += agreed == (1, 1) and (forth, back) != ("TIE", "TIE")
    return [Standing(*each) for each in counts]
