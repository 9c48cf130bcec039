"""Percentages of a metric: the baseline today and the target, `81% of letters, need 97`."""

from __future__ import annotations

from itertools import pairwise

from align.advisor.project_facts import Evidence
from align.advisor.text.nouns import noun
from align.advisor.text.number import Number
from align.advisor.text.number_words import vocabulary
from align.advisor.text.ranges import rises
from align.advisor.text.sentence_context import SentenceContext

BEFORE, AFTER = 9, 6
"""Words before and behind a share that are searched for its meaning."""
_COMMAS = frozenset((",", "，", ";", "；", "and", "but", "und", "aber", "y", "pero"))


def is_target(scene: SentenceContext, number: Number) -> bool:
    """Return whether bare digits are a share because another share is in the sentence: `we pass in 81%, need 97`."""
    wanted = any(m.end <= number.start <= m.end + 2 for m in scene.named("near:target"))
    with_share = any(n.share for n in scene.numbers)
    return number.plain and 1 < number.value <= 100 and wanted and with_share and not noun(scene, number).labels


def is_score(scene: SentenceContext, number: Number) -> bool:
    """Return whether a number between 0 and 1 is a share because a metric is next to it: `F1 0.62 today`."""
    named = any(
        m.end <= number.start <= m.end + 3 or 0 <= m.start - number.end <= 1 for m in scene.named("near:metric")
    )
    named = named or _side_of_a_rise(scene, number) == "evals.target"  # F1 from 0.6 to 0.8
    return 0 < number.value < 1 and named and not noun(scene, number).labels


def share(scene: SentenceContext, number: Number) -> list[Evidence]:
    """Return a share as target or baseline, or no evidence for others (a discount, an overlap, an error rate)."""
    if not number.share and number.value > 1:
        number = number.as_share(number.end)
    low, high = _room(scene, number)
    side = _side_of_a_rise(scene, number)
    if side:
        return [scene.evidence(side, number.value, number.start, number.end, number=number)]
    if scene.has("near:not_metric", max(low, number.start - 4), min(high, number.end + 4), denied=True):
        return []
    target = _distance(scene, "near:target", number, low, min(high, number.end + 5))
    prompted = _distance(scene, "near:prompted", number, low, high)
    baseline = _distance(scene, "near:baseline", number, low, high)
    at = number.start, number.end
    if target is not None and (prompted is None or target <= prompted):
        return [scene.evidence("evals.target", number.value, *at, number=number)]
    if prompted is None and baseline is None:
        return []
    near = scene.has("near:prompted", max(number.start - 14, 0), number.end + 8, denied=True)
    return [scene.evidence("evals.baseline", number.value, *at, number=number, vague=not near)]


def _side_of_a_rise(scene: SentenceContext, number: Number) -> str:
    """Return the field of a share that is one end of a wanted rise, `from 60% to 90%`; empty where it is none."""
    known = vocabulary(tuple(scene.languages))
    shares = [n for n in scene.numbers if n.share or 0 < n.value < 1]
    for first, second in pairwise(shares):
        if number in (first, second) and first.value < second.value and rises(scene.sentence, first, second, known):
            return "evals.baseline" if number == first else "evals.target"
    return ""


def _room(scene: SentenceContext, number: Number) -> tuple[int, int]:
    """Return the words that describe a share: not beyond its neighbours, nor beyond a comma or "and" behind it."""
    words = scene.sentence.words
    low, high = max(number.start - BEFORE, 0), min(number.end + AFTER, len(words))
    for other in scene.numbers:
        if other.share and other.end <= number.start:
            low = max(low, other.end)
        elif other.share and other.start >= number.end:
            high = min(high, other.start)
    comma = next((at for at in range(number.end, high) if words[at] in _COMMAS), high)
    return low, comma


def _distance(scene: SentenceContext, label: str, number: Number, low: int, high: int) -> int | None:
    found = [m for m in scene.named(label) if m.start >= low and m.end <= high]
    return min(
        (number.start - m.end if m.end <= number.start else m.start - number.end + 1 for m in found), default=None
    )
