"""Numbers in words: `two hundred and fifty`, `half a billion`, `a few thousand`, `zweihundertfünfzig`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from align.advisor.text.lexicon import lexicon
from align.advisor.text.number import Number
from align.advisor.text.sentences import Sentence

OPENING = ("ones", "tens", "scales", "vague", "half", "articles")
"""Roles of words that a number may begin with."""
_FITS = {"articles": ("scales", "vague", "half"), "and": ("ones", "tens", "half"), "of": ("scales", "vague")}
"""Roles that may follow a small word within a number."""
_FRACTIONS = {"½": ("half", 0.5), "¼": ("half", 0.25), "¾": ("half", 0.75)}


class Vocabulary:
    """The number words of some languages with role and meaning; the first language wins."""

    def __init__(self, languages: Sequence[str]) -> None:
        self._known: dict[str, tuple[str, Any]] = dict(_FRACTIONS)
        self._language: dict[str, str] = {}
        for language in reversed(languages):
            for role, words in lexicon(language).numbers.items():
                listed = words if isinstance(words, dict) else dict.fromkeys(words.split())
                self._known |= {str(word): (role, meaning) for word, meaning in listed.items()}
                self._language |= dict.fromkeys(map(str, listed), language)
        self._compounds: dict[str, float] | None = None
        if "de" in languages:
            german = lexicon("de").numbers
            self._compounds = {word: v for role in ("ones", "tens", "half") for word, v in german[role].items()}
            self._compounds["ein"] = 1

    def role(self, word: str) -> tuple[str, Any]:
        """Return a word's role (``ones``, ``scales``, ``to`` ...) and meaning; an empty role for other words."""
        found = self._known.get(word)
        if found is None and self._compounds is not None and 6 <= len(word) <= 40:
            value = self._compound(word)
            found = self._known[word] = ("", None) if value is None else ("ones", value)
        return found or ("", None)

    def language(self, word: str) -> str:
        """Return the language of a word."""
        return self._language.get(word, "")

    def _compound(self, word: str) -> float | None:
        """Parse German number words written as one: dreiundzwanzig, zweihundertfünfzig; None for other words."""
        simple = self._compounds or {}
        for scale, factor in (("tausend", 1000), ("hundert", 100)):
            head, found, tail = word.partition(scale)
            if found:
                many = simple.get(head, self._compound(head)) if head else 1
                rest = simple.get(tail, self._compound(tail)) if tail else 0
                return None if many is None or rest is None else many * factor + rest
        head, _, tail = word.partition("und")
        return simple[head] + simple[tail] if head in simple and tail in simple else None


@cache
def vocabulary(languages: tuple[str, ...]) -> Vocabulary:
    """Return the vocabulary of some languages, made once."""
    return Vocabulary(languages)


def parse_number_words(
    s: Sentence, at: int, known: Vocabulary, value: float | None = None, start: int | None = None
) -> Number | None:
    """Parse number words from ``at`` on; None where there is no number.

    value, start: the digits before them (5 in "5 million") and the index of their word.
    """
    begin = at if start is None else start
    total, current, low, high = 0.0, value, 1.0, 1.0
    end, scale, vague = at if value is not None else 0, 1.0, False
    while at < len(s.words):
        role, meaning = known.role(s.words[at])
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
        elif role == "vague":
            typical, least, most = meaning
            if vague:  # hundreds of thousands
                current = (current or 1) * least / 2
            else:
                current, vague = typical * (current or 1), True
                low, high = low * least / typical, high * most / typical
        elif role == "half":
            if total and current is None:  # millón y medio
                total += meaning * scale
            elif current is not None and current >= 20:
                break
            else:  # one and a half million
                current = (current or 0) + meaning
        elif role in _FITS:
            skip = _small(s, at, known, role, current is not None or total > 0, vague, current or total)
            if not skip:
                break
            at += skip
            continue
        else:
            break
        at += 1
        end = at
        if at < len(s.words) and s.words[at] == "." and role == "scales":  # Mrd. Tokens
            end = at = at + 1
    number = total + (current or 0)
    if not end or (current is None and total == 0) or (0 < number < 1 and scale == 1):
        return None
    return Number(number, begin, end, number * low, number * high, vague)


def _small(s: Sentence, at: int, known: Vocabulary, role: str, begun: bool, vague: bool, value: float) -> int:
    """Return the count of small words ("and", "a", "of") from ``at`` on that are part of the number."""
    ahead, further = (known.role(word)[0] if word else "" for word in (*s.words[at + 1 : at + 3], "", "")[:2])
    if role == "and" and ahead == "articles" and further == "half" and begun:  # two and a half
        return 2
    if role == "and" and (not begun or (value < 20 and ahead != "half")):
        return 0
    if role == "of" and not vague and not 0 < value < 1:
        return 0
    if role == "of" and ahead == "articles" and further == "scales":  # a quarter of a million
        return 2
    return 1 if ahead in _FITS[role] else 0
