"""A number and its place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Number:
    """A number in a sentence.

    value: its value; a share where ``share`` is set (81% -> 0.81). start, end: its words, half-open. vague: it is
    a rough reading of words or a range, between ``low`` and ``high``. letter: the scale where it is a letter (7B -> b).
    plain: it is bare digits, as years and ids are.
    """

    value: float
    start: int
    end: int
    low: float
    high: float
    vague: bool = False
    share: bool = False
    letter: str = ""
    plain: bool = False

    def as_share(self, end: int) -> Number:
        """Return the number as hundredths, up to word ``end``."""
        return Number(self.value / 100, self.start, end, self.low / 100, self.high / 100, self.vague, share=True)


def exact(value: float, start: int, end: int, letter: str = "", plain: bool = False) -> Number:
    """Return a number without uncertainty."""
    return Number(value, start, end, value, value, letter=letter, plain=plain)
