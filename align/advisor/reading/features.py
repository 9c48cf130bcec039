"""Hashed n-grams: words -> the features of the learned reader.

Characters (2 to 5) carry endings, compounds, and languages without spaces; words (1 to 3) carry phrases. Every digit
is read as 0: how many there are tells a number's size. A feature is 32 bits; its first bits name its bucket, as in
Weinberger et al. 2009, "Feature hashing for large scale multitask learning" (0902.2206).
"""

from __future__ import annotations

import itertools
import re
import unicodedata
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from align.advisor.text.number import Number
from align.advisor.text.sentences import Sentence

Hashes = np.ndarray[Any, np.dtype[np.uint32]]
"""Features, 32 bits each; one that occurs twice is there twice."""

CHARACTERS = (2, 3, 4, 5)
WORDS = (1, 2, 3)
NEAR = 8
"""Words on either side of a number that tell what it counts."""
ORDERED = 3
"""Words next to a number of which it counts how near they are."""

_SPACE = re.compile(r"\s+")
_DIGIT = re.compile(r"\d")
_WORD = re.compile(r"[\u3040-\u9fff]|[^\W\d_]+(?:['’][^\W\d_]+)?|\d[\d.,]*|[^\w\s]")
_PRIME = np.uint32(0x01000193)
_GOLDEN = 0x9E3779B1


def of_text(text: str) -> Hashes:
    """Return the character and word n-grams of a text."""
    plain = normalised(text)
    return np.concatenate([*_characters(plain), *_word_grams(_words(plain), max(WORDS))])


def of_sentences(sentences: Sequence[str]) -> list[Hashes]:
    """Return the features of each sentence: its own n-grams, and those of the sentences around it."""
    plain = [normalised(sentence) for sentence in sentences]
    words = [_words(each) for each in plain]
    found = []
    for at, sentence in enumerate(plain):
        parts = [*_characters(sentence), *_word_grams(words[at], max(WORDS))]
        if at > 0:
            parts += [_marked(grams, 1) for grams in _word_grams(words[at - 1], 2)]
        if at + 1 < len(plain):
            parts += [_marked(grams, 2) for grams in _word_grams(words[at + 1], 1)]
        found.append(np.concatenate(parts))
    return found


def of_number(sentence: Sentence, number: Number) -> Hashes:
    """Return the features of a number in a sentence: the words around it, by side and nearness, and its size."""
    words, start, end = sentence.words, number.start, number.end
    before, behind = words[max(0, start - NEAR) : start][::-1], words[end : end + NEAR]
    size = int(np.floor(2 * np.log10(max(number.value, 1e-3))))
    named = [f"m{size}", f"s{number.share}", f"p{number.plain}", f"g{number.letter}", f"v{number.vague}"]
    named.append(f"m{size} {number.share} {behind[0] if behind else ''}")
    for side, near in (("<", before), (">", behind)):
        named += [side + word for word in near]
        named += [f"{side}{place}{word}" for place, word in enumerate(near[:ORDERED])]
        named += [f"{side}{one} {other}" for one, other in itertools.pairwise(near[:5])]
        for place, word in enumerate(near[:2]):
            framed = f"^{word}$"
            named += [f"{side}{place}~{framed[at : at + 4]}" for at in range(max(1, len(framed) - 3))]
    named += [f"in {word}" for word in words]
    return _mixed(np.array([zlib.crc32(name.encode()) for name in named], np.uint32))


def normalised(text: str) -> str:
    """Return a text in lower case and compatible characters, one space between words, every digit a 0."""
    return f" {_SPACE.sub(' ', _DIGIT.sub('0', unicodedata.normalize('NFKC', text).lower())).strip()} "


def _characters(text: str) -> list[Hashes]:
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    found, hashed = [], points.copy()
    for n in range(2, max(CHARACTERS) + 1):
        if len(hashed) < 2:
            break
        hashed = hashed[:-1] * _PRIME + points[n - 1 :]
        found.append(_marked(hashed, 10 + n))
    return found


def _words(text: str) -> Hashes:
    return np.array([zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in _WORD.findall(text)], np.uint32)


def _word_grams(words: Hashes, longest: int) -> Iterable[Hashes]:
    hashed = words.copy()
    for n in range(1, longest + 1):
        if n > 1:
            if len(hashed) < 2:
                break
            hashed = hashed[:-1] * _PRIME ^ words[n - 1 :]
        yield _marked(hashed, 20 + n)


def _marked(hashed: Hashes, kind: int) -> Hashes:
    """Tell features of different kinds apart."""
    return _mixed(hashed ^ np.uint32(kind * _GOLDEN & 0xFFFFFFFF))


def _mixed(hashed: Hashes) -> Hashes:
    """Spread features over all 32 bits (the finalizer of MurmurHash3)."""
    hashed = hashed ^ (hashed >> np.uint32(16))
    hashed = hashed * np.uint32(0x85EBCA6B)
    hashed = hashed ^ (hashed >> np.uint32(13))
    hashed = hashed * np.uint32(0xC2B2AE35)
    return hashed ^ (hashed >> np.uint32(16))
