"""Plain numbers in all their notations, exactly: most answers need nothing else, and sympy never sees them."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from align.plugins.rewards.math.notation import Unparsed

_DIGITS = r"\d+(?:\.\d*)?|\.\d+"
_NUMBER = re.compile(rf"-?(?:{_DIGITS})")
_GROUPED = re.compile(r"(-?\d{1,3}(?:(?:,\d{3})+|(?: \d{3})+))(\.\d+)?")
_FRACTION = re.compile(r"(-?)\\frac\{(-?)(\d+)\}\{(-?)(\d+)\}|(-?)(\d+) ?/ ?(-?)(\d+)")
_MIXED = re.compile(r"(-?)(\d+) ?(?:\\frac\{(\d+)\}\{(\d+)\}|(?<= )(\d+) ?/ ?(\d+))")
_SCIENTIFIC = re.compile(rf"(-?(?:{_DIGITS})) ?(?:[eE]([+-]?\d+)|(?:\\times|\\cdot|\*|x) ?10 ?\^\{{([+-]?\d+)\}})")
_REPEATING = re.compile(r"(-?)(\d*)\.(\d*)\\(?:overline|bar|dot)\{?(\d+)\}?")


class Numeral(NamedTuple):
    """A number, and how it is written.

    decimals: digits behind its point, None without one. significant: its digits without leading zeros.
    """

    value: Fraction
    decimals: int | None
    significant: int


def numeral(text: str) -> Numeral | None:
    """Integers, decimals, fractions, mixed numbers, repeating decimals, powers of ten, percentages.

    Raises Unparsed for a division by zero, and a power of ten above 1,000.
    """
    if len(text) > 1000:
        return None
    percent = text.endswith("%")
    body = text[:-1].strip() if percent else text
    body = re.sub(r"^([+-]) ", r"\1", body).removeprefix("+").replace("- ", "-")
    decimals, significant = None, 0
    if match := _GROUPED.fullmatch(body):
        body = re.sub(r"[, ]", "", match[1]) + (match[2] or "")
    if _NUMBER.fullmatch(body):
        value = Fraction(body.rstrip(".") if body.endswith(".") else body)
        if "." in body:
            decimals = len(body.partition(".")[2])
            significant = len(body.replace(".", "").lstrip("-0"))
    elif match := _FRACTION.fullmatch(body):
        signs = "".join(match[i] or "" for i in (1, 2, 4, 6, 8))
        top, bottom = int(match[3] or match[7]), int(match[5] or match[9])
        if bottom == 0:
            raise Unparsed("divides by zero")
        value = Fraction(top, bottom) * (-1) ** len(signs)
    elif match := _MIXED.fullmatch(body):
        top, bottom = int(match[3] or match[5]), int(match[4] or match[6])
        if bottom and top >= bottom:
            raise Unparsed("is ambiguous: a mixed number or a product")
        if bottom == 0:
            raise Unparsed("divides by zero")
        value = (int(match[2]) + Fraction(top, bottom)) * (-1 if match[1] else 1)
    elif match := _SCIENTIFIC.fullmatch(body):
        power = int(match[2] or match[3])
        if abs(power) > 1000:
            raise Unparsed("is too large a number")
        value = Fraction(match[1].rstrip(".")) * Fraction(10) ** power
        if "." in match[1]:
            decimals = max(0, len(match[1].partition(".")[2]) - power)
            significant = len(match[1].replace(".", "").lstrip("-0"))
    elif match := _REPEATING.fullmatch(body):
        whole, start, again = match[2] or "0", match[3], match[4]
        value = Fraction(int(whole + start or "0"), 10 ** len(start))
        value += Fraction(int(again), 10 ** len(start) * (10 ** len(again) - 1))
        value *= -1 if match[1] else 1
    else:
        return None
    if percent:
        decimals = None if decimals is None else decimals + 2
        value /= 100
    return Numeral(value, decimals, significant)
