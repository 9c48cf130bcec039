"""One grammar for numbers, in digits and in words: `5,1 Mrd.`, `1.8e9`, `half a billion`, `a few thousand`, `六万`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from align.advisor.text.chinese_numerals import HAN_SCALES, parse_chinese
from align.advisor.text.lexicon import LANGUAGES
from align.advisor.text.number import Number, exact
from align.advisor.text.number_words import OPENING, Vocabulary, parse_number_words, vocabulary
from align.advisor.text.ranges import merge_ranges
from align.advisor.text.sentences import Sentence, split_words

LETTERS = {"k": 1e3, "m": 1e6, "mm": 1e6, "mn": 1e6, "mln": 1e6, "b": 1e9, "bn": 1e9, "bln": 1e9, "t": 1e12, "tn": 1e12}
"""Scales in letters; one letter only where it is joined to its number or a capital."""
_POWERS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")
_DIGITS = frozenset("0123456789")
DECIMAL_COMMA = ("de", "es")
"""Languages with a lexicon that write 1.234,5."""
_LARGEST = 1e300
"""Larger values are taken for ids, not numbers."""


def parse(quote: str, languages: Sequence[str] = LANGUAGES) -> Number | None:
    """Return the first number in a quote, to check a number that a model took from it; None without one."""
    return next(iter(numbers(split_words(quote), languages)), None)


def numbers(sentence: Sentence, languages: Sequence[str] = LANGUAGES) -> list[Number]:
    """Return every number of a sentence, in order; dates, times, ratios, versions and telephone numbers are none."""
    known = vocabulary(tuple(languages))
    decimal_comma = bool(languages) and languages[0] in DECIMAL_COMMA
    found: list[Number] = []
    at = 0
    while at < len(sentence.words):
        number = _one(sentence, at, known, decimal_comma)
        if number is None:
            at += 1
        else:
            found.append(_share(sentence, number, known))
            at = found[-1].end
    return list(merge_ranges(sentence, found, known))


def _one(s: Sentence, at: int, known: Vocabulary, decimal_comma: bool) -> Number | None:
    kind = s.kinds[at]
    if kind == "number":
        return None if _is_no_number(s, at) else _digits(s, at, known, decimal_comma)
    if kind == "han":
        return parse_chinese(s, at, None, at)
    if kind == "word" and known.role(s.words[at])[0] in OPENING:
        return parse_number_words(s, at, known)
    return None


def _digits(s: Sentence, at: int, known: Vocabulary, decimal_comma: bool) -> Number | None:
    text, end = s.words[at], at + 1
    while re.fullmatch(r"\d{1,3}|\d{1,3}( \d{3})+", text) and end < len(s.words) and _group(s, end):
        text, end = f"{text} {s.words[end]}", end + 1
    follows = s.words[end] if end < len(s.words) else ""
    role = known.role(follows)[0]
    value = _value(text, decimal_comma or known.language(follows) in DECIMAL_COMMA, role == "scales")
    if value is None or (s.joined(end) and follows in ("st", "nd", "rd", "th", "º", "ª")):
        return None
    power = _power(s, at, end, value)
    if power:
        return power
    if follows in LETTERS and (len(follows) > 1 or follows == "k" or s.joined(end) or s.text[s.starts[end]].isupper()):
        return exact(value * LETTERS[follows], at, end + 1, letter=follows[0])
    if follows == "w" and s.joined(end) and end + 1 < len(s.words) and s.kinds[end + 1] == "han":  # 3w条
        return exact(value * 1e4, at, end + 1)
    if follows and s.kinds[end] == "han" and follows in HAN_SCALES:
        return parse_chinese(s, end, value, at)
    mixed = role == "and" and [known.role(word)[0] for word in s.words[end + 1 : end + 3]] == ["articles", "half"]
    if role in ("scales", "half") or mixed:
        return parse_number_words(s, end, known, value, at)
    return exact(value, at, end, plain=text.isdigit())


def _power(s: Sentence, at: int, end: int, value: float) -> Number | None:
    """Parse 10^9, 10**9, 2.5x10^9, 10⁹."""
    behind = "".join(s.words[end : end + 5])
    starred = end < len(s.words) and s.text[s.ends[end - 1] : s.starts[end]] == "**"  # stars are marks of emphasis
    written = re.match(r"(x10\^|\^)(\d{1,2})", f"^{behind}" if starred else behind)
    if written:
        scaled = written[1] != "^"
        number = (value if scaled else 1) * _raised(10.0 if scaled else value, int(written[2]))
        return exact(number, at, end + (4 if scaled else 2 - starred))
    raised = behind[:2].translate(_POWERS)
    if behind and behind[0] not in _DIGITS and raised[:1] in _DIGITS:
        exponent = int("".join(digit for digit in raised if digit in _DIGITS))
        return exact(_raised(value, exponent), at, end + 1)
    return None


def _raised(base: float, exponent: int) -> float:
    """Return a power; 0 beyond 10^300, which would overflow."""
    return base**exponent if exponent * math.log10(max(base, 1)) < 300 else 0.0


def _group(s: Sentence, at: int) -> bool:
    """Return whether a word is three digits behind one space: 12 000."""
    three = s.kinds[at] == "number" and len(s.words[at]) == 3 and s.words[at].isdigit()
    return three and s.starts[at] == s.ends[at - 1] + 1


def _is_no_number(s: Sentence, at: int) -> bool:
    """Return whether digits are part of a date, time, ratio, telephone number or name (llama-2, recall@5)."""
    word = s.words[at]
    if word[0] == "0" and word.isdigit() and len(word) > 1:
        return True
    if at and s.text[s.ends[at - 1] : s.starts[at]] == "-":  # llama-2, but Mistral-7B and 3k-5k
        ranged = s.words[at - 1] in LETTERS and at > 1 and s.kinds[at - 2] == "number" and s.joined(at - 1)
        return not ranged and not (s.joined(at + 1) and s.words[at + 1] in ("b", "m"))
    before = s.words[at - 1] if s.joined(at) else ""
    if before in ("@", "#", "§") or (before in (":", "/", ".") and s.joined(at - 1)):
        return before != "/" or s.kinds[at - 2] not in ("word", "han")
    if before == "-" and at > 3 and s.kinds[at - 2] == "number" and s.words[at - 3] == "-" and s.joined(at - 2):
        return True
    after = s.words[at + 1] if at + 1 < len(s.words) and s.joined(at + 1) else ""
    beyond = at + 2 < len(s.words) and s.joined(at + 2) and s.kinds[at + 2] == "number"
    dated = after == "-" and beyond and at + 3 < len(s.words) and s.words[at + 3] == "-" and s.joined(at + 3)
    return (after in (":", "/") and beyond) or dated


def _value(text: str, decimal_comma: bool, scaled: bool) -> float | None:
    """Parse digits with their separators; None for a version (1.2.3)."""
    plain = re.sub(r"['’ ]", "", text)
    if "," in plain and "." in plain:
        thousands = min(",.", key=plain.rfind)
        plain = plain.replace(thousands, "").replace(",", ".")
    elif "," in plain:
        grouped = re.fullmatch(r"\d{1,3}(,\d{3})+", plain) and not (scaled and decimal_comma)
        plain = plain.replace(",", "" if grouped else ".")
    elif re.fullmatch(r"[1-9]\d{0,2}(\.\d{3})+", plain) and (
        decimal_comma or plain.count(".") > 1 or plain.endswith("000")
    ):
        plain = plain.replace(".", "")
    if plain.count(".") > 1 or len(plain) > 40:
        return None
    value = float(plain)
    return value if value < _LARGEST else None


def _share(s: Sentence, number: Number, known: Vocabulary) -> Number:
    after = s.words[number.end : number.end + 2]
    if after in (("por", "ciento"), ("por", "cien")):
        return number.as_share(number.end + 2)
    if after and (after[0] == "%" or known.role(after[0])[0] == "percent"):
        return number.as_share(number.end + 1)
    if "".join(s.words[max(number.start - 3, 0) : number.start]) == "百分之":
        return number.as_share(number.end)
    return number
