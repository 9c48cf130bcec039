"""The noun that a number counts: in the phrase behind it, or before it (`traces: ~9k`)."""

from __future__ import annotations

from typing import NamedTuple

from align.advisor.text.lexicon import Match
from align.advisor.text.number import Number
from align.advisor.text.sentence_context import SentenceContext

PHRASE = 7
"""Words behind a number that are searched for its noun (twelve characters in Chinese)."""
LEFT = 6
"""Words before a number that are searched for its noun, where none is behind."""
_JOINTS = frozenset(("->", "→", "+", "/", "-", "&"))
_OF = frozenset(("of", "de", "von", "an"))
_THE = frozenset(
    ("the", "our", "those", "these", "such", "los", "las", "nuestros", "nuestras", "esos", "esas", "den", "unseren")
)
_ANDS = (("and",), ("und",), ("y",), ("plus",), ("和",))
_POINTERS = frozenset(
    (
        ":",
        ",",
        "(",
        "=",
        "~",
        "，",
        "：",
        "（",
        "约",
        "共",
        "有",
        "就",
        "is",
        "are",
        "about",
        "total",
        "son",
        "sind",
        "met",
    )
)


class Noun(NamedTuple):
    """The noun that a number counts: its labels, and the words of number and noun, half-open."""

    labels: frozenset[str]
    start: int
    end: int

    def named(self, kind: str) -> str | None:
        """Return its label with a prefix (``unit:``, ``data:``), or None."""
        return next((label for label in sorted(self.labels) if label.startswith(kind)), None)


def noun(scene: SentenceContext, number: Number) -> Noun:
    """Return the last known noun of the phrase behind a number; without labels where there is none.

    Of nouns that end together the longest counts: `bullet points`, not `points`. Joined to the number by a hyphen the
    first counts: `18-field record`. "40 times" counts events, whatever follows.
    """
    known = scene.nouns.get(number.start)
    if known is None:
        known = scene.nouns[number.start] = _behind(scene, number)
    return known


def _behind(scene: SentenceContext, number: Number) -> Noun:
    begin, limit = _begin(scene, number), phrase_end(scene, number)
    times = next((m for m in scene.named("phrase:times") if m.start == number.end), None)
    if times is not None:
        return Noun(frozenset(("data:weak",)), number.start, times.end)
    found = [m for m in scene.countable if begin <= m.start < limit]
    if not found:
        return _shared(scene, number)
    ends = ("tokens", "token", "词") if scene.languages[0] in ("de", "zh") else ("tokens",)
    tokens = [m.end for m in found if m.label == "unit:tokens" and scene.sentence.words[m.start] in ends]
    found = [m for m in found if m.end <= min(tokens, default=limit + LEFT)]  # 2 Mrd. Tokens Fachtexte
    text, after = scene.sentence.text, scene.sentence.ends[number.end - 1]
    if text[after : after + 1] == "-":
        first = min(m.start for m in found)
        end = max(m.end for m in found if m.start == first)
    else:
        end = max(m.end for m in found)
        first = min(m.start for m in found if m.end == end)
    labels = frozenset(m.label for m in found if m.start == first and m.end == end)
    if labels == {"unit:other"} and end < limit and scene.sentence.kinds[end] == "word":
        return Noun(frozenset(), number.start, number.end)  # customer complaints are no customers
    return Noun(labels, number.start, end)


def _shared(scene: SentenceContext, number: Number) -> Noun:
    """Return the noun of the next number, where only "and" is between: `sets of 56k and 12k rows`."""
    labels: frozenset[str] = frozenset()
    if scene.sentence.words[number.end : number.end + 1] in _ANDS and not number.share:
        other = next((n for n in scene.numbers if n.start == number.end + 1 and not n.share), None)
        labels = noun(scene, other).labels if other else labels
    return Noun(labels, number.start, number.end)


def _begin(scene: SentenceContext, number: Number) -> int:
    words, at = scene.sentence.words, number.end
    if at < len(words) and words[at] in _OF:
        at += 1
        while at < len(words) and words[at] in _THE:
            at += 1
    return at


def phrase_end(scene: SentenceContext, number: Number) -> int:
    """Return the end of the noun phrase behind a number: before a stop word, a mark or another number."""
    s = scene.sentence
    at = start = _begin(scene, number)
    length = 12 if at < len(s.words) and s.kinds[at] == "han" else PHRASE
    while at < len(s.words) and at < start + length:
        here = s.kinds[at] == "mark" and s.words[at] not in _JOINTS
        stop = at in scene.phrase_stops and s.text[s.ends[at] : s.ends[at] + 1] != "-"  # on-policy pairs
        if stop and at > start and s.words[at : at + 1] in _ANDS:  # formatting and wording rules
            stop = any(start <= m.start < at for m in scene.countable)
        if at not in s.quoted and (at in scene.number_starts or stop or here):
            break
        at += 1
    return at


def noun_before(scene: SentenceContext, number: Number, kind: str) -> Match | None:
    """Return the noun before a number, with a mark or "are", "about" between, that no other number counts; or None."""
    low = max(number.start - LEFT, 0)
    found = [m for m in scene.countable if m.label.startswith(kind) and low <= m.start and m.end <= number.start]
    found = [
        m
        for m in found
        if not any(n.start < number.start and m.start - 3 <= n.end <= number.start for n in scene.numbers)
    ]
    if not found:
        return None
    between = scene.sentence.words[found[-1].end : number.start]
    return found[-1] if any(word in _POINTERS for word in between) else None
