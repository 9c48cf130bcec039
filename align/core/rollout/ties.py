"""When two rewards are the same: ``0.3`` and ``0.1 + 0.2`` are one reward that was rounded on two ways.

    tied    max r - min r <= ROUNDING max(max |r|, size)

size is that of the numbers which were added to make the rewards: 0.3 - (0.1 + 0.2) is -5.6e-17 and means 0, since the
terms are of the size of 0.3.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from align.core.rollout.score import Scored

ROUNDING = 2.0**-40
"""Relative: what some thousand operations on float64 numbers (2**-53 each) can add up to. In float32 the numbers that
come next to each other differ by 2**-23, and so are never taken for one."""


def tied(rewards: Sequence[float], size: float = 0.0) -> bool:
    """Return whether no two of the rewards differ by more than rounding."""
    if len(rewards) < 2:
        return True
    low, high = min(rewards), max(rewards)
    return high - low <= ROUNDING * max(abs(low), abs(high), size)


def reaches(reward: float, bound: float) -> bool:
    """Return whether a reward is at least ``bound``, but for rounding."""
    return reward >= bound or tied((reward, bound))


def classes(rewards: Iterable[float], size: float = 0.0) -> Iterator[list[float]]:
    """Yield the rewards in ascending order, those together that are the same."""
    together: list[float] = []
    for reward in sorted(rewards):
        if together and not tied((together[0], reward), size):
            yield together
            together = []
        together.append(reward)
    if together:
        yield together


def leveled(scored: Sequence[Scored]) -> list[float | None]:
    """Return the rewards of a prompt's answers, those equal that are the same, so that a plain comparison is right."""
    known = [each.reward for each in scored if each.reward is not None]
    size = max((each.size for each in scored), default=0.0)
    first = {reward: together[0] for together in classes(known, size) for reward in together}
    return [None if each.reward is None else first[each.reward] for each in scored]
