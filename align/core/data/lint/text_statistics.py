"""How long rows are, in characters, words and, with a tokenizer, tokens: percentiles and a histogram."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from align.core.data.lint.base import Lint
from align.core.data.lint.finding import LintFinding, Places, finding
from align.core.data.lint.row_view import WORD, View

Count = Callable[[Sequence[str]], Sequence[int]]
"""Of each text, how many tokens it is."""

BATCH = 256
"""Rows tokenised at once."""
BINS = 24
FERTILE, ENOUGH = 2.0, 1_000
"""Tokens a word from which on a tokenizer does not know a language (Rust et al. 2021: 1.1 to 1.3 where it does, 2 and
more where it does not), and words needed to say so."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """One part of all rows (whole, prompt, answer, chosen, rejected) in one unit (characters, words, tokens).

    histogram: (from, to, rows), half-open but the last, of equal ratio; without rows of length zero.
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
        """Of at least one row. Percentiles are lengths that rows have: the smallest that so many do not exceed."""
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
        """As plain data."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.part}: {self.least:,} to {self.most:,} {self.unit}, median {self.p50:,}, "
            f"95% within {self.p95:,}; {self.total:,} in all"
        )


class Measure(Lint):
    """Lengths of every row's parts. count: tokens, where there is a tokenizer. max_length: in tokens."""

    def __init__(self, count: Count | None = None, max_length: int | None = None) -> None:
        self.count, self.max_length = count, max_length
        self._values: dict[tuple[str, str], array[int]] = {}
        self._rows, self._waiting = array("Q"), list[tuple[str, str]]()
        self.bytes = 0

    def see(self, row: View) -> None:
        """Measure its parts; tokens are counted some rows later."""
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
        """By unit and part."""
        self._tokenise()
        return [Lengths.of(part, unit, values) for (unit, part), values in self._values.items()]

    @property
    def tokens(self) -> int | None:
        """All of them, None without a tokenizer."""
        self._tokenise()
        held = self._values.get(("tokens", "whole"))
        return sum(held) if held is not None else None

    def findings(self, places: Places) -> Iterator[LintFinding]:
        """Rows that are too long, and text that takes too many tokens."""
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


def _parts(row: View) -> Iterator[tuple[str, str]]:
    """What is measured of a row."""
    yield "whole", row.text
    if row.answers:
        yield "prompt", row.prompt
        yield from zip(("answer",) if len(row.answers) == 1 else ("chosen", "rejected"), row.answers, strict=True)
