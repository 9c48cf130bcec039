"""Check the columns that give a row's source, its licence and its annotator."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterator

from align.core.data.lint.finding import Lint, LintFinding, Places, finding
from align.core.data.lint.row_view import RowView

LICENCE = ("license", "licence", "licenses", "licences")
SOURCE = ("source", "dataset", "data_source", "origin", "subset", "domain")
JUDGE = ("labelled_by", "labeled_by", "label_source", "annotator", "annotator_id", "judge", "judge_model", "rater")
MOST = 1_000
"""The number of different values from which on a column names rows rather than categories."""
ALONE = 0.9
"""The share of rows from which on one source is reported."""
_RESTRICTS = re.compile(
    r"\b(?:nc|nd|non-?commercial|no-?derivatives|research|unknown|proprietary|copyrighted)\b|all rights reserved", re.I
)


class ColumnValues:
    """The values of a column under one of several names, and how many rows have each."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names, self.values, self.many = names, Counter[str](), False

    def see(self, row: RowView) -> str | None:
        """Count the value of a row, cut to 80 characters, and return it."""
        value = row.column(*self.names)
        if not isinstance(value, (str, int, float)):
            return None
        value = str(value)[:80]
        if not self.many:
            self.values[value] += 1
            if len(self.values) > MOST:
                self.many = True
                self.values.clear()
        return value

    @property
    def top(self) -> list[tuple[str, int]]:
        """The values and their counts, the most common first, ties by name; empty where there are too many values."""
        return sorted(self.values.items(), key=lambda item: (-item[1], item[0]))


class ProvenanceColumns(Lint):
    """Licences, sources and annotators of the rows."""

    def __init__(self) -> None:
        self.licence, self.source, self.judge = ColumnValues(LICENCE), ColumnValues(SOURCE), ColumnValues(JUDGE)
        self._restricted, self._pairs = array("Q"), 0

    def see(self, row: RowView) -> None:
        """Count the columns of a row."""
        licence = self.licence.see(row)
        if licence is not None and _RESTRICTS.search(licence):
            self._restricted.append(row.number)
        self.source.see(row)
        if row.record.kind in ("preference", "unpaired"):
            self._pairs += 1
            self.judge.see(row)

    def findings(self, places: Places) -> Iterator[LintFinding]:
        """Yield findings for restrictive licences, a dominant source, and missing columns."""
        if self._restricted:
            named = [name for name, _ in self.licence.top if _RESTRICTS.search(name)][:5]
            yield finding("licence-restricts", places, self._restricted, licences=", ".join(map(ascii, named)))
        if not (self.licence.values or self.licence.many):
            yield finding("no-licence", places, count=0)
        if len(self.source.values) > 1 and self.source.top[0][1] >= ALONE * len(places):
            value, count = self.source.top[0]
            yield finding("one-source", places, count=count, value=value)
        if self._pairs and not (self.judge.values or self.judge.many):
            yield finding("no-label-source", places, count=0)
