"""Units: one spelling for each, so that ``5 km`` is ``5 kilometers`` and never ``5 m``. Nothing is converted."""

from __future__ import annotations

import re

_UNITS = {
    "deg": "degree degrees",
    "degC": "celsius",
    "degF": "fahrenheit",
    "dollar": "dollars usd USD bucks",
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
    "rad": "radian radians",
    "rpm": "",
    "mg": "milligram milligrams",
    "t": "ton tons tonne tonnes",
    "oz": "ounce ounces",
    "gal": "gallon gallons",
    "acre": "acres",
    "N": "newton newtons",
    "J": "joule joules",
    "W": "watt watts",
    "kW": "kilowatt kilowatts",
    "V": "volt volts",
    "Hz": "hertz",
    "Pa": "pascal pascals",
    "K": "kelvin kelvins",
    "mol": "mole moles",
    "ms": "millisecond milliseconds",
    "yen": "",
    "way": "ways",
    "person": "people persons",
    "unit": "units",
    "point": "points pts",
    "am": "a.m. a.m AM A.M. A.M",
    "pm": "p.m. p.m PM P.M. P.M",
}
_UNIT = {spelling: unit for unit, spellings in _UNITS.items() for spelling in [unit, *spellings.split()]}
_RATES = ("mph", "kph", "km/h", "m/s", "cm/s", "miles per hour")
BARE_UNITS = "|".join(
    re.escape(unit)
    for unit in sorted((*_UNIT, *_RATES), key=len, reverse=True)
    if len(unit) > 1 and unit not in ("mg", "ms", "am", "pm")
)
r"""A pattern for units that are known without ``\text``; one letter is a variable, and ``mg`` two."""
SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_NOT_UNITS = (
    "or and not more less than maybe about around over under plus minus times point approximately roughly almost "
    "nearly at most least fewer greater above below between to by each with without is are was does has remainder "
    "mod modulo base i e x y z n k pi phi log ln sin cos tan sec csc cot exp sqrt root square cube power squared "
    "cubed factorial inverse reciprocal opposite negative positive imaginary percent dozen score couple gross lakh "
    "crore kilo mega giga double triple twice thrice half halve quarter first zero one two three four five six "
    "seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty thirty "
    "forty fifty sixty seventy eighty ninety hundred thousand third infinity infinite wrong incorrect false error "
    "mistake lie no nope never none null nothing unless guess think hope doubt suppose perhaps possibly probably "
    "possible sometimes always unsure unclear unknown yes this its his hers ours theirs us if but except besides "
    "instead otherwise what whatever else versus vs regardless doubtless"
)
NO_UNIT = frozenset(_NOT_UNITS.split())
"""Words that say something else of a number than its unit."""
_DENYING = (
    "not no nope never none neither nor non without except but unlike wrong incorrect incorrectly false falsely "
    "mistake error lie unless unsure doubt doubtful impossible invalid negative minus plus times opposite inverse "
    "reciprocal half double twice triple thrice dozen maybe perhaps possibly probably guess or either instead"
)
_DENIALS = frozenset(_DENYING.split())
_COUNTED = frozenset({"people", "children", "men", "women", "fish", "sheep", "geese", "teeth", "mice", "dice"})
_WITH_TH = frozenset({"month", "path", "length", "width", "depth", "birth", "moth", "myth", "booth", "cloth"})


def denies(word: str) -> bool:
    """Return whether a word next to a number changes or denies it: ``tenths``, ``sevens``, ``million``, ``wrong``."""
    word = word.lower()
    stems = {word, word.removesuffix("s"), word.removesuffix("es"), re.sub("ves$", "f", word)}
    if stems & NO_UNIT or re.search("illi(?:on|ard)(?:th)?s?$", word):
        return True
    return re.search("(?:th|thirds?|n't)s?$", word) is not None and not stems & _WITH_TH


def contradicts(text: str) -> bool:
    """Return whether words deny, doubt or change what they stand next to, as in ``wrong = 3`` and ``(A) is not it``."""
    return any(word in _DENIALS or word.endswith("n't") for word in re.findall("[a-z']+", text.lower()))


def is_unit(words: str) -> bool:
    """Return whether words are a unit whatever the gold answer is: a known one, or counted things (``red marbles``)."""
    whole, *per = re.split(r"/| per ", _normal(words))
    return _is_single_unit(whole.strip(), plural=True) and all(_is_single_unit(p.strip(), plural=False) for p in per)


def _is_single_unit(words: str, plural: bool) -> bool:
    if _base(words)[0] in _UNIT or (len(words) > 3 and _base(words)[0].lower() in _UNIT):
        return True
    if any(map(denies, words.split())) or not re.fullmatch(r"[a-z]{3,}(?: [a-z]{3,}){0,2}", words):
        return False
    last = words.split()[-1]
    return not plural or last in _COUNTED or re.search("[^isu]s$", last) is not None


def unit_of(words: str) -> str:
    """One spelling for each unit; ``square cm`` is ``cm^2``, ``mph`` is ``mi/h``. Case differs in short ones."""
    return "/".join(_single_unit(part.strip()) for part in re.split(r"/| per ", _normal(words)))


def _normal(words: str) -> str:
    return {"mph": "mi/h", "kph": "km/h", "kmh": "km/h"}.get(words, words)


def _single_unit(words: str) -> str:
    base, power = _base(words)
    known = _UNIT.get(base) or _UNIT.get(base.lower()) if len(base) > 3 else _UNIT.get(base)
    name = known or (base.lower().removesuffix("s") if len(base) > 3 else base)
    return name if power == "1" else f"{name}^{power}"


def _base(words: str) -> tuple[str, str]:
    """``square cm`` and ``cm^2`` as ``cm`` and 2."""
    words = re.sub(r"\^\{?([123])\}?", r"^\1", words)
    match = re.fullmatch(r"(?:(square|sq\.?|cubic|cu\.?) )?(.*?)(?:\^([123]))?", words)
    assert match is not None
    power = match[3] or {"s": "2", "c": "3"}.get((match[1] or " ")[0], "1")
    return match[2].strip(), power
