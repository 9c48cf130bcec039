"""Equality of rewards but for rounding: ``0.3`` and ``0.1 + 0.2`` are one reward, computed in two ways.

    tied    max r - min r <= ROUNDING max(max |r|, size)

size is the sum of the absolute values of the terms that a reward was added up from. A reward near 0 may be the rest of
large terms, and its rounding error is theirs: 0.3 - (0.1 + 0.2) is -5.6e-17 and means 0, as size is 0.6.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from align.core.rewards.scorer import Scored

ROUNDING = 2.0**-40
"""A relative difference: the rounding errors of some thousand float64 operations (2**-53 each) stay below it. Two
neighbouring float32 numbers differ by at least 2**-24 of the larger one, so no two float32 scores are taken for one."""


def tied(rewards: Sequence[float], size: float = 0.0) -> bool:
    """Return whether no two of the rewards differ by more than rounding."""
    if len(rewards) < 2:
        return True
    low, high = min(rewards), max(rewards)
    return high - low <= ROUNDING * max(abs(low), abs(high), size)


def reaches(reward: float, bound: float) -> bool:
    """Return whether a reward is at least ``bound``, rounding apart."""
    return reward >= bound or tied((reward, bound))


def classes(rewards: Iterable[float], size: float = 0.0) -> Iterator[list[float]]:
    """Yield the rewards in ascending order, in lists of equal ones."""
    equal: list[float] = []
    for reward in sorted(rewards):
        # Compared with the smallest: along a chain of neighbours the difference could grow without bound.
        if equal and not tied((equal[0], reward), size):
            yield equal
            equal = []
        equal.append(reward)
    if equal:
        yield equal


def leveled(scored: Sequence[Scored]) -> list[float | None]:
    """Return the rewards of one prompt's answers, with equal ones made exactly equal, so that ``>`` and ``==`` hold."""
    known = [each.reward for each in scored if each.reward is not None]
    size = max((each.size for each in scored), default=0.0)
    first = {reward: equal[0] for equal in classes(known, size) for reward in equal}
    return [None if each.reward is None else first[each.reward] for each in scored]
