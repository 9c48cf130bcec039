"""What a lint says, and the books that lints keep: which rows, where they are, and what they come to."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from align.core.data.lint.catalogue import CATALOGUE

Level = Literal["error", "warning", "note"]
RANK: dict[Level, int] = {"error": 2, "warning": 1, "note": 0}

SHOWN = 5
"""Most rows named in a sentence."""
LISTED = 100
"""Most rows named in JSON."""


@dataclass(frozen=True, slots=True)
class LintFinding:
    """One thing that was seen in the rows.

    count, of: how many of how many ``unit`` (rows, pairs, prompts, lines ...). what: the sentence behind the counts.
    rows: where, ``train.jsonl:17``, in the order of the file, the first LISTED. detail: figures, as plain data.
    """

    id: str
    level: Level
    count: int
    of: int
    unit: str
    what: str
    fix: str
    rows: tuple[str, ...] = ()
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """Count / of, in [0, 1]; 0 of nothing is 0."""
        return self.count / self.of if self.of else 0.0

    @property
    def places(self) -> str:
        """The first SHOWN rows: ``rows 2, 17``, with their files where these are several."""
        files = {row.rpartition(":")[0] for row in self.rows}
        named = [row.rpartition(":")[2] if len(files) == 1 else row for row in self.rows[:SHOWN]]
        if not named:
            return ""
        return f"row{'s' * (len(self.rows) > 1)} {', '.join(named)}" + " ..." * (len(self.rows) > SHOWN)

    def __str__(self) -> str:
        where = f": {self.places}" if self.rows else ""
        return f"{self.level}: {self.what}{where} [{self.id}]"

    def dump(self) -> dict[str, Any]:
        """The same as plain data."""
        return {**asdict(self), "share": self.share}


class Places:
    """Where each row is, by its number in the order of reading; some bytes a row, whatever files are called."""

    def __init__(self) -> None:
        self._files: dict[str, int] = {}
        self._file, self._line = array("I"), array("Q")

    def add(self, source: str) -> int:
        """Enter the next row, ``train.jsonl:17``; its number is returned."""
        file, _, line = source.rpartition(":")
        if not (line.isascii() and line.isdigit() and len(line) < 19):
            file, line = source, "0"
        self._file.append(self._files.setdefault(file, len(self._files)))
        self._line.append(int(line))
        return len(self._line) - 1

    def __len__(self) -> int:
        return len(self._line)

    def names(self, rows: Iterable[int]) -> tuple[str, ...]:
        """The first LISTED of some rows, in order, as messages call them."""
        files, first = list(self._files), sorted(rows)[:LISTED]
        return tuple(f"{files[self._file[row]]}:{self._line[row]}" for row in first)


def finding(
    id: str,
    places: Places,
    rows: Iterable[int] = (),
    *,
    count: int | None = None,
    of: int | None = None,
    unit: str = "rows",
    **detail: Any,
) -> LintFinding:
    """A finding of the catalogue: its sentence filled with the counts and with ``detail``.

    count: of ``unit``; by default the number of rows. of: by default all rows.
    """
    entry, rows = CATALOGUE[id], list(rows)
    count, of = len(rows) if count is None else count, len(places) if of is None else of
    share = count / of if of else 0.0
    percent = f"{share:.1%}" if share >= 0.001 or not count else "under 0.1%"
    counted = f"{count:,} of {of:,} {unit} ({percent})"
    what = entry.what.format(counted=counted, count=count, of=of, **detail)
    level: Level = entry.level if share >= entry.loud_from else "note"
    return LintFinding(id, level, count, of, unit, what, entry.fix, places.names(rows), detail)
