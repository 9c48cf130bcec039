"""Plain text to go on pre-training with: lines that come in every document, and documents that are hardly prose.

Quality follows the rules of MassiveText (Rae et al. 2021, appendix A.1.1): words of 3 to 10 characters on average, at
most one # or ... to ten words, 80 % of words with a letter in them.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator

from align.core.data.lint.base import Lint, Thinned
from align.core.data.lint.finding import LintFinding, Places, finding
from align.core.data.lint.row_view import View, digest, normal

LINES = 500_000
"""Different lines counted at most; of more, a random share."""
LONG = 20
"""Characters from which a line can be boilerplate; shorter ones are headings and closing brackets."""
COMMON, LEAST = 0.01, 10
"""A line is boilerplate from this share of documents on, and this many."""
SHORT = 50
"""Words under which a document teaches little of how texts go on (MassiveText)."""
_LETTERS = re.compile(r"[^\W\d_]+")


class Corpus(Lint):
    """Rows that are text and no conversation."""

    def __init__(self) -> None:
        self._lines = Thinned[tuple[int, int]](LINES)
        self._poor, self._short, self._documents = array("Q"), array("Q"), 0

    def see(self, row: View) -> None:
        """Count its lines and judge it."""
        if row.record.kind != "text" or row.turns:
            return
        self._documents += 1
        for line in {found for found in map(normal, row.text.splitlines()) if len(found) >= LONG}:
            key = digest(line)
            if self._lines.wants(key):
                count, first = self._lines.held.get(key, (0, row.number))
                self._lines.set(key, (count + 1, min(first, row.number)))
        if len(row.text.split()) < SHORT and len(row.words) < SHORT:
            self._short.append(row.number)
        elif poor(row.text):
            self._poor.append(row.number)

    def findings(self, places: Places) -> Iterator[LintFinding]:
        """Of the rows that are documents."""
        of = self._documents
        if self._short:
            yield finding("short-documents", places, self._short, of=of, unit="documents", floor=SHORT)
        if self._poor:
            yield finding("low-quality", places, self._poor, of=of, unit="documents")
        floor = max(LEAST, int(COMMON * of))
        common = [first for count, first in self._lines.held.values() if count >= floor]
        if common:
            lines = len(self._lines.held)
            yield finding("boilerplate", places, common, of=lines, unit="different lines", floor=floor)


def poor(text: str) -> bool:
    """Whether a text breaks a rule for prose. Words are measured in ASCII alone: some scripts have no spaces."""
    words = text.split()
    if not words:
        return True
    with_letters = sum(_LETTERS.search(word) is not None for word in words) / len(words)
    mean = sum(map(len, words)) / len(words)
    letters = sum(map(len, _LETTERS.findall(text))) / max(1, sum(map(len, words)))
    signs = max(text.count("#"), text.count("...") + text.count("…")) / len(words)
    long = mean > 10 and text.isascii()
    return with_letters < 0.8 or letters < 0.5 or (mean < 3 and text.isascii()) or long or signs > 0.1
