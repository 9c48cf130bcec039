"""Units: one spelling for each, so that ``5 km`` is ``5 kilometers`` and never ``5 m``. Nothing is converted."""

from __future__ import annotations

import re

_UNITS = {
    "deg": "degree degrees",
    "dollar": "dollars usd bucks",
    "euro": "euros eur",
    "pound": "pounds gbp",
    "cent": "cents",
    "km": "kilometer kilometers kilometre kilometres kms",
    "m": "meter meters metre metres",
    "cm": "centimeter centimeters centimetre centimetres cms",
    "mm": "millimeter millimeters millimetre millimetres",
    "mi": "mile miles",
    "ft": "foot feet",
    "in": "inch inches",
    "yd": "yard yards",
    "kg": "kilogram kilograms kgs",
    "g": "gram grams",
    "lb": "lbs",
    "s": "second seconds sec secs",
    "min": "minute minutes mins",
    "h": "hour hours hr hrs",
    "day": "days",
    "week": "weeks",
    "month": "months",
    "year": "years yr yrs",
    "L": "liter liters litre litres l",
    "mL": "milliliter milliliters millilitre millilitres ml",
    "unit": "units",
}
_UNIT = {spelling: unit for unit, spellings in _UNITS.items() for spelling in [unit, *spellings.split()]}
_RATES = ("mph", "kph", "km/h", "m/s", "cm/s", "miles per hour")
BARE_UNITS = "|".join(sorted((u for u in (*_UNIT, *_RATES) if len(u) > 1), key=len, reverse=True))
r"""A pattern for units that are known without ``\text``; one letter is a variable."""
SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_NOT_UNITS = (
    "or and not more less than maybe about around over under plus minus times half third quarter dozen percent "
    "squared cubed point approximately roughly almost nearly at most least fewer greater above below between to by "
    "each with without is are remainder mod base"
)
NO_UNIT = frozenset(_NOT_UNITS.split())
"""Words that say something else of a number than its unit."""


def unit_of(words: str) -> str:
    """One spelling for each unit; ``square cm`` is ``cm^2``, ``mph`` is ``mi/h``. Case differs in short ones."""
    spelt = {"mph": "mi/h", "kph": "km/h", "kmh": "km/h"}.get(words, words)
    return "/".join(_single_unit(part.strip()) for part in re.split(r"/| per ", spelt))


def _single_unit(words: str) -> str:
    words = re.sub(r"\^\{?([123])\}?", r"^\1", words)
    match = re.fullmatch(r"(?:(square|sq\.?|cubic|cu\.?) )?(.*?)(?:\^([123]))?", words)
    assert match is not None
    power = match[3] or {"s": "2", "c": "3"}.get((match[1] or " ")[0], "1")
    base = match[2].strip()
    known = _UNIT.get(base) or _UNIT.get(base.lower()) if len(base) > 3 else _UNIT.get(base)
    name = known or (base.lower().removesuffix("s") if len(base) > 3 else base)
    return name if power == "1" else f"{name}^{power}"
