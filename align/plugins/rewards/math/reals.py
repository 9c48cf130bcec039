"""Sets of real numbers: finite unions of points and intervals, whose ends are compared exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cmp_to_key

from align.plugins.rewards.math.equality import sign
from align.plugins.rewards.math.expression import Term, add, negative

End = Term | str
"""A number, or ``-`` and ``+`` for the infinities."""


@dataclass(frozen=True)
class Reals:
    """Ends in order; at and after: whether each belongs to the set, and whether what follows it does.

    Nothing before the first end does. Ends at which nothing changes are left out, so equal sets have equal ends.
    """

    ends: tuple[End, ...]
    at: tuple[bool, ...]
    after: tuple[bool, ...]

    @staticmethod
    def interval(low: End, high: End, closed_low: bool, closed_high: bool) -> Reals:
        """An interval; empty where its ends are the wrong way round."""
        order = _order(low, high)
        if order > 0 or (order == 0 and not (closed_low and closed_high)):
            return Reals((), (), ())
        if order == 0:
            return Reals.points([low])
        finite = closed_low and low != "-", closed_high and high != "+"
        return Reals((low, high), finite, (True, False))

    @staticmethod
    def points(values: Iterable[End]) -> Reals:
        """Finitely many numbers."""
        return Reals.union([Reals((value,), (True,), (False,)) for value in values])

    @staticmethod
    def line() -> Reals:
        """The real line."""
        return Reals(("-", "+"), (False, False), (True, False))

    @staticmethod
    def union(sets: Sequence[Reals]) -> Reals:
        """The numbers that are in at least one of the sets."""
        return _combined(sets, any)

    @staticmethod
    def intersection(sets: Sequence[Reals]) -> Reals:
        """The numbers that are in each of the sets."""
        return _combined(sets, all)

    def without(self, other: Reals) -> Reals:
        """The elements that are not in the other."""
        return _combined([self, other], lambda inside: inside[0] and not inside[1])

    def same(self, other: Reals) -> bool:
        """Return whether they have the same elements."""
        return (
            self.at == other.at
            and self.after == other.after
            and all(_order(a, b) == 0 for a, b in zip(self.ends, other.ends, strict=True))
        )


def _order(a: End, b: End) -> int:
    if isinstance(a, Term) and isinstance(b, Term):
        return sign(add(a, negative(b)))
    place = [0 if isinstance(end, Term) else -1 if end == "-" else 1 for end in (a, b)]
    return (place[0] > place[1]) - (place[0] < place[1])


def _combined(sets: Sequence[Reals], rule: Callable[[list[bool]], bool]) -> Reals:
    """Return the set of those that the rule accepts, given in which of the sets each is.

    A sweep from left to right over all ends; those at which the result does not change are dropped.
    """
    merged: list[End] = []
    for end in sorted((end for part in sets for end in part.ends), key=cmp_to_key(_order)):
        if not merged or _order(merged[-1], end):
            merged.append(end)
    ends, at, after = [], [], []
    before = False
    inside = [False] * len(sets)
    for end in merged:
        here = list(inside)
        for i, part in enumerate(sets):
            for own, on, follows in zip(part.ends, part.at, part.after, strict=True):
                if _order(own, end) == 0:
                    here[i], inside[i] = on, follows
        on, follows = rule(here), rule(inside)
        if on != before or follows != before:
            ends.append(end)
            at.append(on)
            after.append(follows)
        before = follows
    return Reals(tuple(ends), tuple(at), tuple(after))
