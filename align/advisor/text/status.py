"""How a thing is spoken of: triggers before and after it, as in NegEx.

Chapman et al. 2001, "A simple algorithm for identifying negated findings and diseases in discharge summaries": a trigger
rules the words behind it (or before it) up to a terminator; a pseudo-trigger ("not only") rules nothing. Added here:
kinds of trigger other than negation, and a comma ends what a negation rules unless a list with "or" goes on behind it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from align.advisor.facts import Status
from align.advisor.text.lexicon import Match
from align.advisor.text.words import Sentence

REACH = {"noun": 6, "verb": 9, "before": 14, "after": 7}
"""Words that a trigger rules, by its kind: no, not; other triggers before and behind."""

_ORDER: tuple[Status, ...] = ("negated", "tried", "attributed", "done", "planned")
_COMMAS = frozenset((",", "，", "、"))
_CLOSED = frozenset((";", ".", "!", "?", "。", "；", "！", "？"))


@dataclass(frozen=True, slots=True)
class _Trigger:
    status: Status
    kind: str
    start: int
    end: int


class Scopes:
    """The triggers of one sentence, and what they rule."""

    def __init__(self, sentence: Sentence, matches: Iterable[Match]) -> None:
        found = [match for match in matches if match.label.startswith("status:")]
        unreal = [(m.start, m.end) for m in found if m.label == "status:negated:pseudo"]
        self._sentence = sentence
        self._stops = frozenset(m.start for m in found if m.label == "status:stop")
        self._ors = frozenset(m.start for m in found if m.label == "status:or")
        self._triggers = [
            _Trigger(status, kind, m.start, m.end)
            for m in found
            for _, status, kind in [(*m.label.split(":"), "")[:3]]
            if kind in REACH and not any(a <= m.start and m.end <= b for a, b in unreal)
        ]

    def of(self, start: int, end: int) -> Status:
        """The status of words ``start`` to ``end``."""
        ruled = {t.status for t in self._triggers if self._rules(t, start, end)}
        return next((status for status in _ORDER if status in ruled), "asserted")

    def negated(self, start: int, end: int) -> bool:
        """Whether the words are denied."""
        return any(t.status == "negated" and self._rules(t, start, end) for t in self._triggers)

    def _rules(self, t: _Trigger, start: int, end: int) -> bool:
        if t.kind == "after":
            return end <= t.start <= end + REACH["after"] and self._open(t, end, t.start)
        return t.end <= start <= t.end + REACH[t.kind] and self._open(t, t.end, start)

    def _open(self, t: _Trigger, start: int, end: int) -> bool:
        """Whether nothing between trigger and thing ends what the trigger rules."""
        words, clauses = self._sentence.words, self._sentence.clauses
        if t.status == "negated":
            here, there = clauses[min(start, len(words) - 1)], clauses[min(end, len(words) - 1)]
            if here != there and (t.kind != "after" or ":" not in words[start:end]):
                return False  # "labels: none" is one thing
            for at in range(start, end):
                if (at in self._stops and at > start) or words[at] in _CLOSED:
                    return False
                if words[at] in _COMMAS and not any(o in self._ors for o in range(at + 1, min(at + 8, len(words)))):
                    return False
            return True
        if t.kind == "after":
            return not any(
                words[at] in _CLOSED or at in self._stops or words[at] in _COMMAS for at in range(start, end)
            )
        return not any((words[at] in _CLOSED and t.status != "tried") or at in self._stops for at in range(start, end))
