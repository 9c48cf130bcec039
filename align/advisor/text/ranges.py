"""Join two numbers into one: ranges (200-300), shares (one in eight, 61 of 100) and sums (60k + 11k)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from align.advisor.text.number import Number, exact
from align.advisor.text.number_words import Vocabulary
from align.advisor.text.sentences import Sentence

WHOLES = frozenset((3, 4, 5, 8, 10, 20, 50, 100, 1000))
"""Numbers that make a share behind "of": 61 of 100."""
DASHES = ("-", "–", "—", "~")
ARROWS = ("->", "→", "=>")
FROM = frozenset(("from", "von", "de", "del", "desde", "从", "由"))
"""Words before the first of two shares that state a rise to the second, which is no range."""

RISE = frozenset("提升高涨拉增加改进善做")
"""Characters before 到 that state a rise."""


def merge_ranges(s: Sentence, found: Sequence[Number], known: Vocabulary) -> Iterator[Number]:
    """Yield the numbers of a sentence, pairs that form one number joined."""
    at = 0
    while at < len(found):
        first = found[at]
        second = found[at + 1] if at + 1 < len(found) else None
        both = _pair(s, first, second, known) if second else None
        if both is None and second and second.share and first.plain and rises(s, first, second, known):
            first = first.as_share(first.end)  # from 60 to 90%
        yield both or first
        at += 2 if both else 1


def rises(s: Sentence, first: Number, second: Number, known: Vocabulary) -> bool:
    """Return whether two shares are a baseline and its target: `from 60% to 90%`, `60% -> 90%`."""
    between = s.words[first.end : second.start]
    if between[-1:] in (("到",), ("至",)) and RISE.issuperset(between[:-1]):  # 从 60% 提高到 90%
        between = between[-1:]
    if len(between) != 1:
        return False
    led = bool(set(s.words[max(first.start - 1, 0) : first.start]) & FROM)
    return between[0] in ARROWS or (led and (known.role(between[0])[0] == "to" or between[0] in ("auf", "al")))


def _pair(s: Sentence, first: Number, second: Number, known: Vocabulary) -> Number | None:
    between = s.words[first.end : second.start]
    if len(between) == 1 and between[0] == "+" and not first.share:
        return exact(first.value + second.value, first.start, second.end)
    role = known.role(between[0])[0] if len(between) == 1 else ""
    dash = s.text[s.ends[first.end - 1] : s.starts[second.start]].strip() in DASHES
    if (role == "to" or dash) and not rises(s, first, second, known):
        return _range(s, first, second)
    each = between in (("out", "of"), ("de", "cada"), ("von", "je"))
    whole = second.value in WHOLES or ((each or role == "in") and between != ("de",) and second.value <= 1000)
    in_words = not (first.plain or second.plain) and (
        (len(between) == 2 and known.role(between[1])[0] == "in")
        or (len(between) == 3 and between[1:] == ("out", "of"))
    )
    part = role in ("in", "of") or each or (in_words and second.value <= 100)  # nine letters in ten
    if part and whole and 0 < first.value < second.value and not (first.share or second.share or first.letter):
        return replace(exact(first.value / second.value, first.start, second.end), share=True)
    return None


def _range(s: Sentence, first: Number, second: Number) -> Number | None:
    """Join "2 to 3 million": the scale of the second counts for the first, where that has none."""
    low = first.value / 100 if second.share and not first.share else first.value
    scale = next((unit for unit in (1e12, 1e9, 1e6, 1e3, 1e2) if second.value >= unit), 1.0)
    scaled = not second.plain and not second.share and second.end - second.start > 1
    if scaled and low < 1000 and low * scale < second.value and not first.letter:
        low *= scale
    if not 0 < low < second.value:
        return None
    return replace(second, value=(low + second.value) / 2, low=low, high=second.value, start=first.start, vague=True)
