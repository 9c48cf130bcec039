"""The standing of words (negated, planned, tried, attributed...), by triggers around them, as in NegEx.

Chapman et al. 2001, "A simple algorithm for identifying negated findings and diseases in discharge summaries": a
trigger governs the words behind it (or before it) up to a terminator; a pseudo-trigger ("not only") governs nothing.
Added here: triggers other than negation, and a comma ends the scope of a negation unless a list with "or" goes on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from align.advisor.project_facts import Status
from align.advisor.text.lexicon import Match
from align.advisor.text.sentences import Sentence

REACH = {"noun": 6, "verb": 9, "before": 14, "near": 5, "after": 7, "whole": 40}
"""Words that a trigger governs, by its kind: no, not; other triggers before and behind."""

_ORDER: tuple[Status, ...] = ("negated", "tried", "attributed", "done", "planned")
_COMMAS = frozenset((",", "，", "、"))
_ANDS = frozenset(("and", "und", "y", "e"))
_CLOSED = frozenset((";", ".", "!", "?", "。", "；", "！", "？"))


@dataclass(frozen=True, slots=True)
class _Trigger:
    status: Status
    kind: str
    start: int
    end: int


class Scopes:
    """The triggers of one sentence, and their scopes."""

    def __init__(self, sentence: Sentence, matches: Iterable[Match]) -> None:
        found = [match for match in matches if match.label.startswith("status:")]
        unreal = [(m.start, m.end) for m in found if m.label == "status:negated:pseudo"]
        self._sentence = sentence
        self._stops = frozenset(m.start for m in found if m.label == "status:stop")
        self._ors = frozenset(m.start for m in found if m.label == "status:or")
        self._triggers = [
            _Trigger(status, kind, m.start, m.end)
            for m in found
            for status in _ORDER
            if m.label.startswith(f"status:{status}:") and (kind := m.label.rsplit(":", 1)[1]) in REACH
            if not any(a <= m.start and m.end <= b for a, b in unreal)
        ]

    def of(self, start: int, end: int) -> Status:
        """Return the status of words ``start`` to ``end``."""
        ruled = {t.status for t in self._triggers if self._rules(t, start, end)}
        return next((status for status in _ORDER if status in ruled), "asserted")

    def negated(self, start: int, end: int, reach: int = 99) -> bool:
        """Return whether the words are denied, by a trigger not further off than ``reach`` words."""
        denials = (
            t for t in self._triggers if t.status == "negated" and t.end >= start - reach and t.start <= end + reach
        )
        return any(self._rules(t, start, end) for t in denials)

    def theirs(self, start: int, end: int) -> bool:
        """Return whether somebody else close by owns the words: `Bloomberg did 363B tokens`."""
        return any(t.kind == "near" and self._rules(t, start, end) for t in self._triggers)

    def _rules(self, t: _Trigger, start: int, end: int) -> bool:
        if t.kind == "whole":  # "live status is shown elsewhere, that is out of scope"
            return end <= t.start <= end + REACH["whole"]
        if t.kind == "after":
            return end <= t.start <= end + REACH["after"] and self._open(t, end, t.start)
        return t.end <= start <= t.end + REACH[t.kind] and self._open(t, t.end, start)

    def _open(self, t: _Trigger, start: int, end: int) -> bool:
        """Return whether nothing between trigger and words ends the trigger's scope."""
        words, clauses = self._sentence.words, self._sentence.clauses
        between = range(start, end)
        if t.status != "negated":
            closed = () if t.status == "tried" else _CLOSED
            return not any(words[at] in closed or at in self._stops for at in between) and (
                t.kind != "after" or not any(words[at] in _COMMAS for at in between)
            )
        colon = next((at for at in between if words[at] == ":"), None)
        if colon is not None and (colon == end - 1 if t.kind == "after" else t.kind == "verb" and colon <= start + 1):
            between = range(start, colon) if t.kind == "after" else range(colon + 1, end)  # "labels: none" is one thing
        elif end < len(words) and clauses[start] != clauses[end]:
            return False
        return not any(self._ends_negation(at, t.kind == "after", at == start) for at in between)

    def _ends_negation(self, at: int, behind: bool, first: bool) -> bool:
        word = self._sentence.words[at]
        if word in _COMMAS:
            return not any(o in self._ors for o in range(at + 1, min(at + 8, len(self._sentence.words))))
        return word in _CLOSED or (at in self._stops and not first) or (behind and word in _ANDS)
