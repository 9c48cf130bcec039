"""One source looked over row by row, holding none: what ``align data check`` tells."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from align.core.data.formats import KINDS
from align.core.data.lint.finding import RANK, Level, LintFinding
from align.core.data.lint.text_statistics import Lengths
from align.core.data.lint.linter import Linter, Looking
from align.core.data.row_errors import BadRow, BadRows
from align.core.data.sources import Reading
from align.core.util.progress import working
from align.schemas.errors import AlignError
from align.schemas.records import Kind
from align.schemas.run import Source
from align.schemas.text import visible


@dataclass(slots=True)
class Survey:
    """What was found.

    form: of most rows, in words. rows: good ones. left_out: files of a directory that were not read. error: why it
    could not be read at all. findings: of the lints, the worst first. languages: shares of a sample.
    """

    path: str
    form: str = ""
    rows: int = 0
    bad: BadRows = field(default_factory=BadRows)
    left_out: list[str] = field(default_factory=list)
    error: str = ""
    findings: list[LintFinding] = field(default_factory=list)
    lengths: list[Lengths] = field(default_factory=list)
    languages: dict[str, float] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """Whether training on it would start."""
        return not (self.error or len(self.bad))

    def passes(self, fail_on: Level) -> bool:
        """Whether it is clean and no finding is as bad as ``fail_on`` or worse."""
        return self.clean and all(RANK[one.level] < RANK[fail_on] for one in self.findings)

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "path": self.path,
            "form": self.form,
            "error": self.error,
            "left_out": self.left_out,
            "rows": self.rows,
            "bad": len(self.bad),
            "bad_by_kind": dict(self.bad.counts.most_common()),
            "bad_rows": [asdict(row) for row in self.bad.rows],
            "findings": [one.dump() for one in self.findings],
            "lengths": [one.dump() for one in self.lengths],
            "languages": self.languages,
        }


def survey(
    source: Source, kinds: Iterable[Kind] = KINDS, looking: Looking | None = None, *, progress: bool | None = None
) -> Survey:
    """Read everything, count, and lint what is good. A source that cannot be read is told in ``error``."""
    found, linter = Survey(source.path), Linter(looking)
    try:
        reading = Reading(source, kinds)
        found.left_out = reading.left_out
        found.form = str(reading.form or "no row that parses")
        for item in reading.rows(progress=progress):
            if isinstance(item, BadRow):
                found.bad.add(item)
            else:
                found.rows += 1
                linter.see(item.record)
        if found.rows:
            with working(f"comparing the rows of {visible(source.path)}", shown=progress):
                found.findings, found.lengths = linter.findings(), linter.lengths
            found.languages = linter.languages.shares
    except AlignError as error:
        found.error = str(error)
    return found
