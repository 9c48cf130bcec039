"""Word-level F1 between an output and a reference text."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]|\w+")
"""A word; in Chinese and Japanese, which have no spaces between words, each character."""


def words(text: str) -> list[str]:
    """Split a text into words, normalised (NFKC) and without case and punctuation."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def f1(output: str, reference: str) -> float:
    """Return 2 p r / (p + r) over words with their counts, in [0, 1]: SQuAD's F1 (1606.05250 section 6.1).

    Unlike in SQuAD articles are kept. Two texts without words give 1, one of them 0.
    """
    a, b = Counter(words(output)), Counter(words(reference))
    if not a or not b:
        return float(a == b)
    return 2 * (a & b).total() / (a.total() + b.total())
