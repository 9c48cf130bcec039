"""Word-level F1 between two texts."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]|\w+")
"""A word; of writing without spaces each character."""


def words(text: str) -> list[str]:
    """Words in Unicode's compatible form, without case and punctuation; Chinese and Japanese by the character."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def f1(said: str, wanted: str) -> float:
    """2 p r / (p + r) over words with their counts, in [0, 1]: SQuAD's F1 (1606.05250 section 6.1), articles kept.

    Both empty agree.
    """
    a, b = Counter(words(said)), Counter(words(wanted))
    if not a or not b:
        return float(a == b)
    return 2 * (a & b).total() / (a.total() + b.total())
