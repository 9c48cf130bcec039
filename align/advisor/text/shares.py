"""Shares: where it stands today and what is needed, `81% of letters, need 97`."""

from __future__ import annotations

from dataclasses import replace

from align.advisor.facts import Evidence
from align.advisor.text.hanzi import Number
from align.advisor.text.nouns import noun
from align.advisor.text.scene import Scene

BEFORE, AFTER = 9, 6
"""Words before and behind a share that say what it is of."""
_COMMAS = frozenset((",", "，", ";", "；", "and", "but", "und", "aber", "y", "pero"))


def is_target(scene: Scene, number: Number) -> bool:
    """Whether bare digits are a share because a share stands beside them: `we pass in 81%, need 97`."""
    wanted = any(m.end <= number.start <= m.end + 2 for m in scene.named("near:target"))
    beside = any(n.share for n in scene.numbers)
    return number.plain and 1 < number.value <= 100 and wanted and beside and not noun(scene, number).labels


def share(scene: Scene, number: Number) -> list[Evidence]:
    """What a share is: the target, the score today, or neither (a discount, an overlap, a rate of errors)."""
    if not number.share:
        number = replace(number, value=number.value / 100, low=number.low / 100, high=number.high / 100, share=True)
    low, high = _room(scene, number)
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


def _room(scene: Scene, number: Number) -> tuple[int, int]:
    """The words that speak of a share: not beyond its neighbours, and behind it not beyond a comma or an and."""
    words = scene.sentence.words
    low, high = max(number.start - BEFORE, 0), min(number.end + AFTER, len(words))
    for other in scene.numbers:
        if other.share and other.end <= number.start:
            low = max(low, other.end)
        elif other.share and other.start >= number.end:
            high = min(high, other.start)
    comma = next((at for at in range(number.end, high) if words[at] in _COMMAS), high)
    return low, comma


def _distance(scene: Scene, label: str, number: Number, low: int, high: int) -> int | None:
    found = [m for m in scene.named(label) if m.start >= low and m.end <= high]
    return min(
        (number.start - m.end if m.end <= number.start else m.start - number.end + 1 for m in found), default=None
    )
