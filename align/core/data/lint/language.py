"""Which languages the rows are in, of a random sample of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any

from align.core.data.lint.base import Lint, Sample
from align.core.data.lint.finding import LintFinding, Places, finding
from align.core.data.lint.row_view import View

LOOKED_AT = 2_000
LETTERS = 40
"""Fewest characters of a text by which its language is told; shorter ones are often told wrong."""
READ = 600
SURE = 0.9
"""Least probability at which a language counts."""
MIXED = 0.05
"""Share of rows in other languages than the commonest from which they are told."""
SEEN = 0.01
"""Smallest share of a language that is named: less is mostly misjudged."""


class Languages(Lint):
    """Languages by py3langid (97 of them; Lui and Baldwin 2012)."""

    def __init__(self) -> None:
        self._sample = Sample[str](LOOKED_AT)

    def see(self, row: View) -> None:
        """Perhaps keep the beginning of its text."""
        self._sample.offer(row.digest, lambda: row.text[:READ])

    @property
    def shares(self) -> dict[str, float]:
        """ISO 639-1 code to the share of the sample in it, the commonest first; "" is what could not be told."""
        counts = Counter(language(text) for text in self._sample)
        return {code: n / counts.total() for code, n in sorted(counts.items(), key=lambda c: (-c[1], c[0]))}

    def findings(self, places: Places) -> Iterator[LintFinding]:
        """Nothing where nearly all that can be told is in one language."""
        shares = {code: share for code, share in self.shares.items() if code and share >= SEEN}
        if len(shares) > 1 and 1 - max(shares.values()) / sum(shares.values()) >= MIXED:
            told = ", ".join(f"{code} {share:.0%}" for code, share in list(shares.items())[:6])
            others = round((sum(shares.values()) - max(shares.values())) * len(self._sample))
            yield finding("language-mix", places, count=others, of=len(self._sample), languages=told, shares=shares)


def language(text: str) -> str:
    """The code of a text's language, "" where it is too short or could be several."""
    if sum(map(str.isalpha, text)) < LETTERS and text.isascii():
        return ""
    code, sure = _identifier().classify(text)
    return str(code) if sure >= SURE else ""


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
