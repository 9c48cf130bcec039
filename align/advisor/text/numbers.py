"""One grammar for numbers, in digits and in words: `5,1 Mrd.`, `1.8e9`, `half a billion`, `a few thousand`, `六万`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any

from align.advisor.text.hanzi import HAN_SCALES, Number, chinese
from align.advisor.text.lexicon import LANGUAGES, lexicon
from align.advisor.text.words import Sentence, cut

_LETTERS = {"k": 1e3, "m": 1e6, "mm": 1e6, "mn": 1e6, "b": 1e9, "bn": 1e9, "t": 1e12, "tn": 1e12}
_POWERS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")
WHOLES = frozenset((3, 4, 5, 8, 10, 20, 50, 100, 1000))
"""Behind "of" these make a share: 61 of 100."""
_COMMA = ("de", "es")
"""Languages that write 1.234,5."""


@cache
def _words(languages: tuple[str, ...]) -> dict[str, tuple[str, Any]]:
    """Number words of several languages, those of the first winning."""
    known: dict[str, tuple[str, Any]] = {}
    for language in reversed(languages):
        for kind, words in lexicon(language).numbers.items():
            if isinstance(words, dict):
                known |= {str(word): (kind, value) for word, value in words.items()}
            else:
                known |= dict.fromkeys(words.split(), (kind, None))
    return known


def parse(quote: str, languages: Sequence[str] = LANGUAGES) -> Number | None:
    """The first number in a quotation, for checking a number that somebody else took from it."""
    return next(iter(numbers(cut(quote), languages)), None)


def numbers(sentence: Sentence, languages: Sequence[str] = LANGUAGES) -> list[Number]:
    """Every number of a sentence, in order; dates, clock times, ratios, versions and telephone numbers are none."""
    known = _words(tuple(languages))
    decimal_comma = bool(languages) and languages[0] in _COMMA
    found: list[Number] = []
    at = 0
    while at < len(sentence.words):
        number = _one(sentence, at, known, decimal_comma)
        if number is None:
            at += 1
            continue
        number = _share(sentence, number, known)
        found.append(number)
        at = number.end
    return list(_merged(sentence, found, known))


def _one(s: Sentence, at: int, known: dict[str, tuple[str, Any]], decimal_comma: bool) -> Number | None:
    kind = s.kinds[at]
    if kind == "number":
        return _digits(s, at, known, decimal_comma)
    if kind == "han":
        return chinese(s, at, None, at)
    if kind == "word":
        role = _role(s.words[at], known)[0]
        if role in ("ones", "tens", "scales", "vague", "half") or (role == "articles" and at + 1 < len(s.words)):
            return _spelt(s, at, known)
    return None


def _digits(s: Sentence, at: int, known: dict[str, tuple[str, Any]], decimal_comma: bool) -> Number | None:
    text, end = s.words[at], at + 1
    if _is_no_number(s, at):
        return None
    while re.fullmatch(r"\d{1,3}|\d{1,3}( \d{3})+", text) and end < len(s.words) and _group(s, end):
        text, end = f"{text} {s.words[end]}", end + 1
    follows = s.words[end] if end < len(s.words) else ""
    scaled = _role(follows, known)[0] == "scales"
    decimal_comma = decimal_comma or (scaled and follows in _words(_COMMA) and follows not in _words(("en",)))
    value = _value(text, decimal_comma, scaled)
    if value is None:
        return None
    plain = text.isdigit()
    if follows in ("^", "x", "*") and end + 1 < len(s.words) and s.kinds[end + 1] == "number":
        power = re.match(r"x?10\^(\d{1,2})|\^(\d{1,2})", "".join(s.words[end : end + 4]))
        if power:
            number = value * 10.0 ** int(power[1]) if power[1] else value ** int(power[2])
            return Number(number, at, end + (4 if power[1] else 2), number, number)
    if follows and follows.translate(_POWERS) != follows and follows.translate(_POWERS).isdigit():
        number = value ** int(follows.translate(_POWERS)[:2])
        return Number(number, at, end + 1, number, number)
    if follows in _LETTERS and (s.joined(end) or follows == "k" or s.text[s.starts[end]].isupper()):
        number = value * _LETTERS[follows]
        return Number(number, at, end + 1, number, number, letter=follows)
    if follows and s.kinds[end] == "han" and follows in HAN_SCALES:
        return chinese(s, end, value, at)
    if s.joined(end) and follows in ("st", "nd", "rd", "th", "º", "ª"):
        return None
    if scaled:
        return _spelt(s, end, known, value, at)
    return Number(value, at, end, value, value, plain=plain)


def _group(s: Sentence, at: int) -> bool:
    return (
        s.kinds[at] == "number"
        and len(s.words[at]) == 3
        and s.words[at].isdigit()
        and s.starts[at] == s.ends[at - 1] + 1
    )


def _is_no_number(s: Sentence, at: int) -> bool:
    """Whether digits are part of a date, a clock time, a ratio, a telephone number or a name (llama-2, recall@5)."""
    word = s.words[at]
    if word[0] == "0" and word.isdigit() and len(word) > 1:
        return True
    if at and s.text[s.ends[at - 1] : s.starts[at]] == "-":  # llama-2, but Mistral-7B
        return not (s.joined(at + 1) and s.words[at + 1] in ("b", "m"))
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
    plain = re.sub(r"['’ ]", "", text)
    if "," in plain and "." in plain:
        thousands = min(",.", key=plain.rfind)
        plain = plain.replace(thousands, "").replace(",", ".")
        return float(plain) if plain.count(".") <= 1 else None
    if "," in plain:
        grouped = re.fullmatch(r"\d{1,3}(,\d{3})+", plain) and not (scaled and decimal_comma)
        plain = plain.replace(",", "" if grouped else ".")
    elif re.fullmatch(r"[1-9]\d{0,2}(\.\d{3})+", plain) and (
        decimal_comma or plain.count(".") > 1 or plain.endswith("000")
    ):
        plain = plain.replace(".", "")
    if plain.count(".") > 1 or len(plain) > 40:
        return None
    value = float(plain)
    return value if value < 1e300 else None


def _role(word: str, known: dict[str, tuple[str, Any]]) -> tuple[str, Any]:
    return known.get(word) or (("ones", v) if (v := _german(word)) is not None else ("", None))


@lru_cache(maxsize=4096)
def _german(word: str) -> float | None:
    """zweihundertfünfzig, dreiundzwanzig: number words written as one."""
    if not 6 <= len(word) <= 40 or not any(part in word for part in ("hundert", "tausend", "und")):
        return None
    simple = {w: v for kind in ("ones", "tens", "half") for w, v in lexicon("de").numbers[kind].items()}
    simple["ein"] = 1
    for scale, factor in (("tausend", 1000), ("hundert", 100)):
        head, found, tail = word.partition(scale)
        if found:
            parts = [simple.get(part, _german(part)) if part else default for part, default in ((head, 1), (tail, 0))]
            return None if None in parts else parts[0] * factor + parts[1]  # type: ignore[operator]
    head, _, tail = word.partition("und")
    return simple[head] + simple[tail] if head in simple and tail in simple else None


_FITS = {"articles": ("scales", "vague", "half"), "and": ("ones", "tens", "half"), "of": ("scales", "vague")}
"""What stands behind a small word that is part of a number."""


def _spelt(
    s: Sentence, at: int, known: dict[str, tuple[str, Any]], value: float | None = None, start: int | None = None
) -> Number | None:
    """Number words from ``at`` on; ``value`` is what digits before them said."""
    begin = at if start is None else start
    total, current, low, high, end, vague = 0.0, value, 1.0, 1.0, at if value is not None else 0, False
    letter, scale = "", 1.0
    while at < len(s.words):
        role, meaning = _role(s.words[at], known)
        if role in ("ones", "tens"):
            if current is not None and not (current >= 20 and current % 10 == 0 and meaning < 10) and current % 100:
                break
            current = (current or 0) + meaning
        elif role == "scales":
            scale = meaning
            if meaning < 1000:
                current = (1 if current is None else current) * meaning
            elif current is None and 0 < total < meaning:
                total *= meaning
            else:
                total, current = total + (1 if current is None else current) * meaning, None
        elif role == "vague" and vague:  # hundreds of thousands
            current = (current or 1) * meaning[1] / 2
        elif role == "vague":
            typical, least, most = meaning
            current = typical * (current or 1)
            low, high, vague = low * least / typical, high * most / typical, True
        elif role == "half":
            if current is not None:
                break
            current, total = (None, total + meaning * scale) if total else (meaning, total)  # millón y medio
        elif role in ("articles", "and", "of") and at + 1 < len(s.words):
            ahead = _role(s.words[at + 1], known)[0]
            fits = _FITS[role]
            if ahead not in fits or (role == "and" and current is None and total == 0):
                break
            if role == "and" and (current or total) < 20:
                break
            if role == "of" and not vague:
                break
            at += 1
            continue
        else:
            break
        at += 1
        end = at
        if at < len(s.words) and s.words[at] == "." and role == "scales":  # Mrd. Tokens
            end = at = at + 1
    if not end or (current is None and total == 0):
        return None
    number = total + (current or 0)
    return Number(number, begin, end, number * low, number * high, vague, letter=letter)


def _share(s: Sentence, number: Number, known: dict[str, tuple[str, Any]]) -> Number:
    after = s.words[number.end : number.end + 2]
    if after in (("por", "ciento"), ("por", "cien")):
        number = replace(number, end=number.end + 1)
        after = ("%",)
    if after and (after[0] == "%" or _role(after[0], known)[0] == "percent"):
        return replace(
            number,
            value=number.value / 100,
            low=number.low / 100,
            high=number.high / 100,
            share=True,
            end=number.end + 1,
        )
    if number.start > 2 and "".join(s.words[number.start - 3 : number.start]) == "百分之":
        return replace(number, value=number.value / 100, low=number.low / 100, high=number.high / 100, share=True)
    return number


def _merged(s: Sentence, found: list[Number], known: dict[str, tuple[str, Any]]) -> Iterator[Number]:
    """Ranges (200-300, 2 to 3 million), shares (one in eight, 9 out of 10) and sums (60k + 11k) are one number."""
    at = 0
    while at < len(found):
        first = found[at]
        both = _pair(s, first, found[at + 1], known) if at + 1 < len(found) else None
        yield both or first
        at += 2 if both else 1


def _pair(s: Sentence, first: Number, second: Number, known: dict[str, tuple[str, Any]]) -> Number | None:
    between = s.words[first.end : second.start]
    if len(between) == 1 and between[0] == "+" and not first.share:
        total = first.value + second.value
        return Number(total, first.start, second.end, total, total)
    role = _role(between[0], known)[0] if len(between) == 1 else ""
    if (role == "to" or between in (("-",), ("–",), ("~",))) and 0 < first.value < second.value:
        return _range(first, second)
    each = between in (("out", "of"), ("de", "cada"), ("von", "je"))
    whole = second.value in WHOLES or ((each or role == "in") and between != ("de",) and second.value <= 1000)
    spelt = len(between) == 2 and not (first.plain or second.plain) and _role(between[1], known)[0] == "in"
    part = role in ("in", "of") or each or (spelt and second.value <= 100)  # nine letters in ten
    if part and whole and 0 < first.value < second.value and not (first.share or second.share or first.letter):
        share = first.value / second.value
        return Number(share, first.start, second.end, share, share, share=True)
    return None


def _range(first: Number, second: Number) -> Number:
    """2 to 3 million: the scale of the second counts for the first where it has none."""
    scale = next((unit for unit in (1e12, 1e9, 1e6, 1e3) if second.value >= unit), 1.0)
    low = first.value / 100 if second.share and not first.share else first.value
    if first.plain and not second.plain and low * scale < second.value:
        low *= scale
    return replace(second, value=(low + second.value) / 2, low=low, high=second.value, start=first.start, vague=True)
