"""Statistics of the text: lengths in characters, words and tokens, languages, and the quality of documents."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np

from align.core.data.lint.finding import BottomKSample, Lint, LintFinding, Places, ThinnedDict, finding
from align.core.data.lint.row_view import WORD, RowView, digest, normal

Count = Callable[[Sequence[str]], Sequence[int]]
"""A function from texts to the number of tokens of each."""

BATCH = 256
"""Rows tokenised at once."""
BINS = 24
FERTILE, ENOUGH = 2.0, 1_000
"""Tokens a word from which on a tokenizer does not know a language (Rust et al. 2021: 1.1 to 1.3 where it does, 2 and
more where it does not), and words needed to say so."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Length statistics of one part of all rows (whole, prompt, answer, chosen, rejected), in one unit.

    unit: characters, words or tokens. histogram: (from, to, rows), half-open but the last, of equal ratio; without rows
    of length zero.
    """

    part: str
    unit: str
    rows: int
    total: int
    mean: float
    least: int
    p50: int
    p90: int
    p95: int
    p99: int
    most: int
    histogram: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, part: str, unit: str, values: Sequence[int]) -> Lengths:
        """Return the statistics of at least one value. Percentiles are values that occur (inverted_cdf)."""
        found = np.asarray(values, np.int64)
        least, p50, p90, p95, p99, most = (
            int(v) for v in np.quantile(found, [0, 0.5, 0.9, 0.95, 0.99, 1], method="inverted_cdf")
        )
        edges = np.unique(np.ceil(np.geomspace(max(1, least), max(2, most + 1), BINS + 1)).astype(np.int64))
        counts = np.histogram(found[found > 0], edges)[0]
        bins = tuple(zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True))
        total = int(found.sum())
        return cls(part, unit, len(found), total, total / len(found), least, p50, p90, p95, p99, most, bins)

    def dump(self) -> dict[str, Any]:
        """Return the statistics as plain data."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.part}: {self.least:,} to {self.most:,} {self.unit}, median {self.p50:,}, "
            f"95% within {self.p95:,}; {self.total:,} in all"
        )


class LengthStatistics(Lint):
    """Lengths of every row's parts. count: tokens, where there is a tokenizer. max_length: in tokens."""

    def __init__(self, count: Count | None = None, max_length: int | None = None) -> None:
        self.count, self.max_length = count, max_length
        self._values: dict[tuple[str, str], array[int]] = {}
        self._rows, self._waiting = array("Q"), list[tuple[str, str]]()
        self.bytes = 0

    def see(self, row: RowView) -> None:
        """Measure the parts of a row; tokens are counted later, in batches."""
        parts = dict(_parts(row))
        self.bytes += len(row.text.encode("utf-8", "surrogatepass"))
        self._rows.append(row.number)
        for part, text in parts.items():
            self._add(part, "characters", len(text))
            self._add(part, "words", sum(1 for _ in WORD.finditer(text)))
            if self.count is not None:
                self._waiting.append((part, text))
        if len(self._waiting) >= BATCH:
            self._tokenise()

    def _add(self, part: str, unit: str, value: int) -> None:
        self._values.setdefault((unit, part), array("L")).append(value)

    def _tokenise(self) -> None:
        if self.count is not None and self._waiting:
            for (part, _), tokens in zip(self._waiting, self.count([text for _, text in self._waiting]), strict=True):
                self._add(part, "tokens", tokens)
            self._waiting.clear()

    @property
    def lengths(self) -> list[Lengths]:
        """The statistics of each unit and part."""
        self._tokenise()
        return [Lengths.of(part, unit, values) for (unit, part), values in self._values.items()]

    def findings(self, places: Places) -> Iterator[LintFinding]:
        """Yield findings for rows that are too long, and for text that takes too many tokens."""
        self._tokenise()
        tokens, words = (np.array(self._values.get((unit, "whole"), ()), np.int64) for unit in ("tokens", "words"))
        if not len(tokens):
            return
        if self.max_length is not None and (over := tokens > self.max_length).any():
            rows = np.array(self._rows)[over].tolist()
            yield finding("over-max-length", places, rows, max_length=self.max_length)
        if words.sum() >= ENOUGH and (fertility := float(tokens.sum() / words.sum())) >= FERTILE:
            yield finding("fertility", places, count=int(tokens.sum()), of=int(tokens.sum()), unit="tokens",
                          fertility=fertility)  # fmt: skip


def _parts(row: RowView) -> Iterator[tuple[str, str]]:
    """Yield the parts of a row that are measured, with their text."""
    yield "whole", row.text
    if row.answers:
        yield "prompt", row.prompt
        yield from zip(("answer",) if len(row.answers) == 1 else ("chosen", "rejected"), row.answers, strict=True)


# Languages, of a random sample of the rows.

LOOKED_AT = 2_000
LETTERS = 40
"""Fewest letters of a text whose language is identified; it is often wrong for shorter ones."""
READ = 600
SURE = 0.9
"""Lowest probability at which a language counts."""
MIXED = 0.05
"""The share of rows in other languages than the most common from which on a mix is reported."""
SEEN = 0.01
"""Smallest share of a language that is named; less is mostly misidentified."""


class Languages(Lint):
    """Languages by py3langid (97 of them; Lui and Baldwin 2012)."""

    def __init__(self) -> None:
        self._sample = BottomKSample[str](LOOKED_AT)

    def see(self, row: RowView) -> None:
        """Offer the beginning of a row's text to the sample."""
        self._sample.offer(row.digest, lambda: row.text[:READ])

    @property
    def shares(self) -> dict[str, float]:
        """The share of the sample in each language by ISO 639-1 code, the most common first; "" where it is unclear."""
        counts = Counter(language(text) for text in self._sample)
        return {code: n / counts.total() for code, n in sorted(counts.items(), key=lambda c: (-c[1], c[0]))}

    def findings(self, places: Places) -> Iterator[LintFinding]:
        """Yield a finding unless nearly all rows whose language is clear are in one language."""
        shares = {code: share for code, share in self.shares.items() if code and share >= SEEN}
        if len(shares) > 1 and 1 - max(shares.values()) / sum(shares.values()) >= MIXED:
            listed = ", ".join(f"{code} {share:.0%}" for code, share in list(shares.items())[:6])
            others = round((sum(shares.values()) - max(shares.values())) * len(self._sample))
            yield finding("language-mix", places, count=others, of=len(self._sample), languages=listed, shares=shares)


def language(text: str) -> str:
    """Return the code of a text's language, "" where the text is too short or the language unclear."""
    if sum(map(str.isalpha, text)) < LETTERS and text.isascii():
        return ""
    code, sure = _identifier().classify(text)
    return str(code) if sure >= SURE else ""


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


# Plain text to go on pre-training with: lines that come in every document, and documents that are hardly prose.
#
# Quality follows the rules of MassiveText (Rae et al. 2021, appendix A.1.1): words of 3 to 10 characters on average, at
# most one # or ... to ten words, 80 % of words with a letter in them.

LINES = 500_000
"""Different lines counted at most; of more, a random share."""
LONG = 20
"""Characters from which a line can be boilerplate; shorter ones are headings and closing brackets."""
COMMON, LEAST = 0.01, 10
"""A line is boilerplate from this share of documents on, and this many."""
SHORT = 50
"""Words under which a document teaches little of how texts go on (MassiveText)."""
_LETTERS = re.compile(r"[^\W\d_]+")


class DocumentQuality(Lint):
    """Checks of rows that are plain text, for pretraining."""

    def __init__(self) -> None:
        self._lines = ThinnedDict[tuple[int, int]](LINES)
        self._poor, self._short, self._documents = array("Q"), array("Q"), 0

    def see(self, row: RowView) -> None:
        """Count the lines of a document and check its quality."""
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
        elif is_low_quality(row.text):
            self._poor.append(row.number)

    def findings(self, places: Places) -> Iterator[LintFinding]:
        """Yield the findings about documents."""
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


def is_low_quality(text: str) -> bool:
    """Return True if a text breaks a rule for prose. Word lengths count for ASCII only: some scripts have no spaces."""
    words = text.split()
    if not words:
        return True
    with_letters = sum(_LETTERS.search(word) is not None for word in words) / len(words)
    mean = sum(map(len, words)) / len(words)
    letters = sum(map(len, _LETTERS.findall(text))) / max(1, sum(map(len, words)))
    signs = max(text.count("#"), text.count("...") + text.count("…")) / len(words)
    long = mean > 10 and text.isascii()
    return with_letters < 0.8 or letters < 0.5 or (mean < 3 and text.isascii()) or long or signs > 0.1
