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

from collections.abc import Iterable, Iterator
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
_CLAUSE_ENDS = frozenset(".;:!?。；：！？")
LARGEST_CACHE = 100_000
"""Most words whose sets are remembered: a long text may have any number of different ones."""
_DENIALS = ("status:negated:noun", "status:negated:verb")


@dataclass(frozen=True, slots=True)
class Match:
    """A phrase found: words ``start`` to ``end``, half-open."""

    label: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Part:
    """One word of a phrase."""

    words: int
    """Number of the set of words that it may be."""
    gap: int
    """Most other words before it."""
    optional: bool


class Lexicon:
    """The phrases of one language. numbers: its number words."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.numbers: dict[str, Any] = content.get("numbers", {})
        self._gap: int = content.get("gap", GAP)
        self._classes: dict[str, str] = {}
        for name, words in content.get("classes", {}).items():
            self._classes[name] = self._expanded(words.split())
        # Every set of words (``a|b|pre*``) has a number, and every spelling the numbers of the sets that it is in: so a
        # word of a sentence is looked up once, however many phrases there are.
        self._set_numbers: dict[str, int] = {}
        self._sets_by_word: dict[str, list[int]] = {}
        self._sets_by_prefix: dict[str, list[int]] = {}
        self._sets_by_suffix: dict[str, list[int]] = {}
        self._sets_cache: dict[str, frozenset[int]] = {}
        self._parts_cache: dict[tuple[str, int], _Part] = {}
        self._phrases: dict[int, list[tuple[str, tuple[_Part, ...]]]] = {}
        """Phrases with their labels, by the set that their first word is in."""
        denials = set[str]()
        for label, phrases in _labelled(content.get("phrases", {})):
            if label in _DENIALS:
                denials.update(phrase for phrase in phrases if phrase.isalpha() or "'" in phrase)
            for phrase in phrases:
                parts = tuple(self._parts(phrase))
                self._phrases.setdefault(parts[0].words, []).append((label, parts))
        self._denials = frozenset(denials)
        self._prefix_lengths = sorted({len(prefix) for prefix in self._sets_by_prefix})
        self._suffix_lengths = sorted({len(suffix) for suffix in self._sets_by_suffix})

    def _expanded(self, words: Iterable[str]) -> str:
        """Return alternatives with the words of a class in the place of ``@name``."""
        return "|".join(self._classes[word[1:]] if word[0] == "@" else word for word in words)

    def _parts(self, phrase: str) -> Iterator[_Part]:
        """Yield the parts of a phrase; ``...`` is a gap before the next one."""
        gap = 0
        for word in _spaced(phrase):
            if word == "...":
                gap = self._gap
                continue
            if (word, gap) not in self._parts_cache:
                number = self._set_number(word.removeprefix("?"))
                self._parts_cache[word, gap] = _Part(number, gap, optional=word[0] == "?")
            yield self._parts_cache[word, gap]
            gap = 0

    def _set_number(self, words: str) -> int:
        """Return the number of a set of alternatives, ``a|b|pre*``; a new set is entered for each of its spellings."""
        if "@" in words:
            words = self._expanded(words.split("|"))
        if words not in self._set_numbers:
            number = len(self._set_numbers)
            self._set_numbers[words] = number
            for word in words.split("|"):
                if len(word) > 1 and word[-1] == "*":
                    self._sets_by_prefix.setdefault(word[:-1], []).append(number)
                elif len(word) > 1 and word[0] == "*":
                    self._sets_by_suffix.setdefault(word[1:], []).append(number)
                else:
                    self._sets_by_word.setdefault(word, []).append(number)
        return self._set_numbers[words]

    def _sets_of(self, word: str) -> frozenset[int]:
        """Return the numbers of the sets that a word of a sentence is in."""
        found = self._sets_cache.get(word)
        if found is None:
            sets = list(self._sets_by_word.get(word, ()))
            for length in self._prefix_lengths:
                if length > len(word):
                    break
                sets += self._sets_by_prefix.get(word[:length], ())
            for length in self._suffix_lengths:
                if length > len(word):
                    break
                sets += self._sets_by_suffix.get(word[-length:], ())
            found = frozenset(sets)
            if len(self._sets_cache) < LARGEST_CACHE:
                self._sets_cache[word] = found
        return found

    def find(self, sentence: Sentence) -> list[Match]:
        """Return every phrase in a sentence, by its start."""
        sets = [
            self._sets_of("<number>" if kind == "number" else word)
            for word, kind in zip(sentence.words, sentence.kinds, strict=True)
        ]
        found = []
        for start, first_sets in enumerate(sets):
            for number in first_sets:
                for label, parts in self._phrases.get(number, ()):
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
        for index in range(at, min(at + part.gap + 1, len(sets))):
            if part.words in sets[index]:
                end = self._end(sentence, sets, parts, number + 1, index + 1)
                if end:
                    return end
            if sentence.words[index] in _CLAUSE_ENDS or sentence.words[index] in self._denials:
                break  # a gap spans no other clause, and no "not" that would deny what comes after it
        return self._end(sentence, sets, parts, number + 1, at) if part.optional else 0


def _labelled(tree: dict[str, Any], above: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yield the phrases of a tree by label, which is the path to them: ``status:negated:noun``."""
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
    """Yield the Chinese characters of a word one by one, and Latin letters among them together."""
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
