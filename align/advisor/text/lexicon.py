"""Lexicons: phrases by label, one data file per language, and the finding of them in a sentence.

A phrase is words with a space between, matched in order:

    word        itself, case ignored          pre*  *suf     words that begin or end so
    a|b|c       one of these (no spaces)      @name          one of the file's ``classes``
    ?word       may be there                  ...            up to ``gap`` (5) other words of the clause, no denial
    <number>    a number in digits

Chinese needs no spaces: every character is a word. Words are looked up once each, so the time does not depend on how
many phrases there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from align.advisor.text.sentences import Sentence

FOLDER = Path(__file__).parent / "lexicons"
LANGUAGES = ("en", "de", "es", "zh")
GAP = 5
"""Most words that ``...`` matches, where a lexicon sets no ``gap``."""
_WALL = frozenset(".;:!?。；：！？")
_DENIALS = ("status:negated:noun", "status:negated:verb")


@dataclass(frozen=True, slots=True)
class Match:
    """A phrase found: words ``start`` to ``end``, half-open."""

    label: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Part:
    words: int
    """Number of a set of words."""
    gap: int
    optional: bool


class Lexicon:
    """The phrases of one language. numbers: its number words. common: words of no particular domain."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.numbers: dict[str, Any] = content.get("numbers", {})
        self.common = frozenset(word for words in content.get("common", {}).values() for word in words.split())
        self._gap: int = content.get("gap", GAP)
        self._classes: dict[str, str] = {}
        for name, words in content.get("classes", {}).items():
            self._classes[name] = "|".join(self._classes[w[1:]] if w[0] == "@" else w for w in words.split())
        self._parts_known: dict[tuple[str, int], _Part] = {}
        self._sets: dict[str, int] = {}
        self._exact: dict[str, list[int]] = {}
        self._heads: dict[str, list[int]] = {}
        self._tails: dict[str, list[int]] = {}
        self._known: dict[str, frozenset[int]] = {}
        self._phrases: dict[int, list[tuple[str, tuple[_Part, ...]]]] = {}
        labelled = list(_labelled(content.get("phrases", {})))
        self._denials = frozenset(
            word
            for label, phrases in labelled
            if label in _DENIALS
            for word in phrases
            if word.isalpha() or "'" in word
        )
        for label, phrases in labelled:
            for phrase in phrases:
                parts = tuple(self._parts(phrase))
                self._phrases.setdefault(parts[0].words, []).append((label, parts))
        self._lengths = sorted({len(head) for head in self._heads}), sorted({len(tail) for tail in self._tails})

    def _parts(self, phrase: str) -> Iterator[_Part]:
        gap = 0
        for word in _spaced(phrase):
            if word == "...":
                gap = self._gap
                continue
            part = self._parts_known.get((word, gap))
            if part is None:
                part = self._parts_known[word, gap] = _Part(self._set(word.removeprefix("?")), gap, word[0] == "?")
            yield part
            gap = 0

    def _set(self, words: str) -> int:
        if "@" in words:
            words = "|".join(self._classes[w[1:]] if w[0] == "@" else w for w in words.split("|"))
        if words not in self._sets:
            self._sets[words] = number = len(self._sets)
            for word in words.split("|"):
                if len(word) > 1 and word[-1] == "*":
                    self._heads.setdefault(word[:-1], []).append(number)
                elif len(word) > 1 and word[0] == "*":
                    self._tails.setdefault(word[1:], []).append(number)
                else:
                    self._exact.setdefault(word, []).append(number)
        return self._sets[words]

    def _of(self, word: str) -> frozenset[int]:
        found = self._known.get(word)
        if found is None:
            sets = list(self._exact.get(word, ()))
            for length in self._lengths[0]:
                if length > len(word):
                    break
                sets += self._heads.get(word[:length], ())
            for length in self._lengths[1]:
                if length > len(word):
                    break
                sets += self._tails.get(word[-length:], ())
            found = frozenset(sets)
            if len(self._known) < 100_000:
                self._known[word] = found
        return found

    def find(self, sentence: Sentence) -> list[Match]:
        """Return every phrase in a sentence, by its start."""
        sets = [
            self._of("<number>" if kind == "number" else word)
            for word, kind in zip(sentence.words, sentence.kinds, strict=True)
        ]
        found = []
        for start, here in enumerate(sets):
            for first in here:
                for label, parts in self._phrases.get(first, ()):
                    end = self._end(sentence, sets, parts, 1, start + 1)
                    if end:
                        found.append(Match(label, start, end))
        return found

    def _end(
        self, sentence: Sentence, sets: list[frozenset[int]], parts: tuple[_Part, ...], number: int, at: int
    ) -> int:
        """Return the end of a phrase whose parts before ``number`` end at ``at``, or 0. Backtracks: they are short."""
        if number == len(parts):
            return at
        part = parts[number]
        for place in range(at, min(at + part.gap + 1, len(sets))):
            if part.words in sets[place]:
                end = self._end(sentence, sets, parts, number + 1, place + 1)
                if end:
                    return end
            if sentence.words[place] in _WALL or sentence.words[place] in self._denials:
                break
        return self._end(sentence, sets, parts, number + 1, at) if part.optional else 0


def _labelled(tree: dict[str, Any], above: str = "") -> Iterator[tuple[str, list[str]]]:
    for key, below in tree.items():
        if isinstance(below, dict):
            yield from _labelled(below, f"{above}{key}:")
        else:
            yield f"{above}{key}", below if isinstance(below, list) else below.split()


def _spaced(phrase: str) -> Iterator[str]:
    """Split a phrase into words; Chinese characters one by one."""
    for word in str(phrase).split():
        han = not word.isascii() and any("\u4e00" <= letter <= "\u9fff" for letter in word)
        if han and "|" not in word and len(word) > 1:
            optional = "?" if word[0] == "?" else ""
            yield from _characters(word.removeprefix("?"), optional)
        else:
            yield word


def _characters(word: str, optional: str) -> Iterator[str]:
    latin = ""
    for letter in word:
        if letter.isascii():
            latin += letter
            continue
        if latin:
            yield optional + latin
            latin = ""
        yield optional + letter
    if latin:
        yield optional + latin


@cache
def lexicon(language: str) -> Lexicon:
    """Return the lexicon of a language; read at the first call."""
    return Lexicon(yaml.load((FOLDER / f"{language}.yaml").read_text(encoding="utf-8"), yaml.CSafeLoader))
