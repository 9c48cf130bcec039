"""One source looked over row by row, holding none: what ``align data check`` tells."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from align.core.data.faults import BadRow, BadRows
from align.core.data.formats import KINDS
from align.core.data.read import Reading
from align.schemas.errors import AlignError
from align.schemas.records import Kind
from align.schemas.run import Source


@dataclass(slots=True)
class Survey:
    """What was found.

    form: of most rows, in words. rows: good ones. left_out: files of a directory that were not read. error: why it
    could not be read at all.
    """

    path: str
    form: str = ""
    rows: int = 0
    bad: BadRows = field(default_factory=BadRows)
    left_out: list[str] = field(default_factory=list)
    error: str = ""

    @property
    def clean(self) -> bool:
        """Whether training on it would start."""
        return not (self.error or len(self.bad))

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
        }


def survey(source: Source, kinds: Iterable[Kind] = KINDS, *, progress: bool = False) -> Survey:
    """Read everything and count. A source that cannot be read is told in ``error``."""
    found = Survey(source.path)
    try:
        reading = Reading(source, kinds)
        found.left_out = reading.left_out
        found.form = str(reading.form or "no row that parses")
        for item in reading.rows(progress=progress):
            if isinstance(item, BadRow):
                found.bad.add(item)
            else:
                found.rows += 1
    except AlignError as error:
        found.error = str(error)
    return found
