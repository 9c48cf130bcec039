"""Identify the languages of a text, by script and small words."""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from typing import Any

import yaml

from align.advisor.text.lexicon import FOLDER

SUPPORTED = ("en", "de", "es")
"""Languages with a lexicon and Latin letters; Chinese is recognised by its script."""
ENOUGH = 4
"""Small words of its own from which a second language is recognised."""
LEAD = 1.3
"""Factor by which the small words of a language without a lexicon must exceed those of the best with one: they
share some."""
SHARE = 0.12
"""Share of the main language's small words that a second language must reach."""
SAMPLE = 200_000
"""Characters looked at."""
_WORD = re.compile(r"[^\W\d_]+")
_MARKS = ".,;:!?()[]\"'“”„«»¿¡"
_HAN = re.compile(r"[\u4e00-\u9fff]")


@lru_cache(maxsize=1)
def _tables() -> dict[str, Any]:
    tables: dict[str, Any] = yaml.load((FOLDER / "languages.yaml").read_text(encoding="utf-8"), yaml.CSafeLoader)
    return tables


@lru_cache(maxsize=1)
def _small_words() -> dict[str, frozenset[str]]:
    tables = _tables()
    return {code: frozenset(words.split()) for code, words in (tables["supported"] | tables["unsupported"]).items()}


def name(code: str) -> str:
    """Return a language's English name."""
    return str(_tables()["names"].get(code, code))


def languages_of(text: str) -> tuple[list[str], list[str]]:
    """Return the text's languages with a lexicon, the main one first, and those without."""
    sample = text[:SAMPLE]
    known, unknown = _latin(sample)
    han = len(_HAN.findall(sample))
    for code, (first, last) in _tables()["scripts"].items():
        letters = len(re.findall(f"[{first}-{last}]", sample))
        if letters > 10 and letters * 10 > han:
            unknown.append(code)
            han = 0 if code == "ja" else han
    letters = sum(map(len, _WORD.findall(sample))) - han
    if han >= 8 or han > letters:
        known = ["zh", *known] if han * 3 > letters else [*known, "zh"]
        unknown = [code for code in unknown if code in _tables()["scripts"]]
    if not known and not unknown:
        known = ["en"]
    return known, unknown


def _latin(sample: str) -> tuple[list[str], list[str]]:
    words = Counter(sample.lower().split())
    words.update({bare: n for word, n in words.items() if (bare := word.strip(_MARKS)) != word})
    small = _small_words()
    hits = {code: _count(words, of) for code, of in small.items()}
    main = max(hits, key=lambda code: hits[code])
    known = max(SUPPORTED, key=lambda code: hits[code])
    if hits[known] * LEAD >= hits[main] or len(small[main] & words.keys()) < 3:
        main = known
    if not hits[main]:
        return [], []
    found = [main]
    for code in sorted(small, key=lambda c: -hits[c]):
        own = small[code] - frozenset().union(*(small[other] for other in found))
        own_count = _count(words, own) if code in SUPPORTED and hits[code] >= ENOUGH else 0
        if own_count >= max(ENOUGH, SHARE * hits[main]) and len(own & words.keys()) >= 3:
            found.append(code)
    return [c for c in found if c in SUPPORTED], [c for c in found if c not in SUPPORTED]


def _count(words: Counter[str], of: frozenset[str]) -> int:
    return sum(words[word] for word in of & words.keys())
